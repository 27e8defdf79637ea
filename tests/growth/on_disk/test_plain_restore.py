"""Orbax restores a grown checkpoint without being told its arrays."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from prts_jax.growth.operators import make_map
from tests.checkpoint.tiny import MODEL, write_source
from tests.growth.on_disk import growing


@pytest.mark.parametrize("mode", ["stream", "reference"])
@pytest.mark.parametrize("checkpointer", [ocp.PyTreeCheckpointer, ocp.StandardCheckpointer])
def test_orbax_restores_a_grown_checkpoint_without_a_target(tmp_path, mode, checkpointer):
    params = write_source(tmp_path / "source")
    growth_map = make_map(MODEL, None, "stack", factor=2)
    source, target = str(tmp_path / "source"), str(tmp_path / "grown")
    growing.grow_checkpoint(source, target, growth_map, mode)
    restored = checkpointer().restore(tmp_path / "grown" / "params")
    up = np.asarray(params["layers"]["mlp"]["up"])
    assert np.array_equal(restored["layers"]["mlp"]["up"], np.concatenate([up, up]))
    assert jax.tree.structure(restored) == jax.tree.structure(params)
