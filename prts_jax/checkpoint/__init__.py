"""Checkpoints: what a run leaves behind, what a restore checks, and growth from file to file."""

from fsspec.config import conf

# gcsfs remembers listings and does not see what tensorstore or another host has written since.
conf.setdefault("gcs", {})["use_listings_cache"] = False
