"""Kernels as torch lays them out, and as ours."""

import numpy as np
import pytest

from prts_jax.formats.model_source import transposed


@pytest.mark.parametrize("dtype", [np.float32, np.uint16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (256, 256), (257, 511), (513, 2)])
def test_tiles_make_the_transpose(shape, dtype):
    matrix = np.random.default_rng(0).integers(0, 2**16, shape).astype(dtype)
    result = transposed(matrix)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, matrix.T)
