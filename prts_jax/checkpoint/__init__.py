"""Checkpoints: what a run leaves behind, what a restore checks, and growth from file to file."""

import os

# Without this, etils opens gs:// paths with TensorFlow wherever it happens to be installed.
os.environ.setdefault("EPATH_USE_TF", "false")
