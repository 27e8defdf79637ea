"""The checkpoint that tests of growth on disk grow."""

import numpy as np
import pytest

from prts_jax.tree import flatten
from tests.checkpoint.tiny import write_source


@pytest.fixture
def source(tmp_path):
    """A checkpoint, and its parameters as NumPy arrays by path."""
    params = write_source(tmp_path / "source")
    values = {path: np.asarray(leaf) for path, leaf in flatten(params).items()}
    return str(tmp_path / "source"), values
