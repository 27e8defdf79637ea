"""Orbax restores a grown checkpoint without being told its arrays."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from prts_jax.formats import convert
from prts_jax.growth.operators import make_map
from tests.checkpoint.tiny import MODEL, save_with_optimizer, write_source
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


@pytest.mark.parametrize("mode", ["stream", "reference"])
def test_orbax_restores_a_grown_optimizer_without_a_target(tmp_path, mode):
    source, _ = save_with_optimizer(tmp_path / "run")
    growth_map = make_map(MODEL, None, "stack", factor=2)
    target = str(tmp_path / "grown")
    growing.grow_checkpoint(source, target, growth_map, mode, optimizer="copy")
    restored = ocp.PyTreeCheckpointer().restore(f"{target}/optimizer")
    saved = ocp.PyTreeCheckpointer().restore(f"{source}/optimizer")
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    shapes = {np.asarray(leaf).shape for leaf in jax.tree.leaves(restored)}
    assert shapes >= {(6, 16, 24), (6, 16)}


def test_orbax_restores_a_converted_checkpoint_without_a_target(tmp_path):
    write_source(tmp_path / "source")
    source = convert.open_source("orbax", str(tmp_path / "source"))
    convert.write_checkpoint(source, str(tmp_path / "copy"))
    for checkpointer in (ocp.PyTreeCheckpointer, ocp.StandardCheckpointer):
        restored = checkpointer().restore(tmp_path / "copy" / "params")
        up = source.read("layers/mlp/up", 1)
        assert np.array_equal(restored["layers"]["mlp"]["up"][1], up)
