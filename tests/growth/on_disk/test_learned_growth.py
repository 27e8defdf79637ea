"""Learned maps from checkpoint to checkpoint: streamed, agreeing with the mesh, kept with it."""

import dataclasses

import numpy as np
import pytest

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.store import Checkpoints, save_checkpoint
from prts_jax.errors import UserError
from prts_jax.growth import dense
from prts_jax.growth.learned import with_arrays
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_disk import plan, reference
from prts_jax.growth.on_disk.grow import choose
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare
from prts_jax.tree import flatten
from tests.checkpoint.tiny import MODEL, lineage_of, write_source
from tests.growth.on_disk import growing
from tests.growth.one_device import grow as on_one_device
from tests.train.tiny import stored_params


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("learned") / "source"
    return str(path), write_source(path)


@pytest.fixture(scope="module")
def learned_map() -> GrowthMap:
    started = make_map(MODEL, None, "learned", widths="embed=24,mlp=32", factor=2)
    declarations = declare(started.target)
    rng = np.random.default_rng(5)
    arrays = {
        name: (array + 0.1 * rng.normal(size=array.shape)).astype(np.float32)
        for name, array in dense.initial(started, declarations).items()
    }
    return with_arrays(started, declarations, arrays)


def test_streaming_and_the_mesh_agree_to_rounding(source, tmp_path, learned_map, monkeypatch):
    path, params = source
    learned_map = dataclasses.replace(learned_map, noise=0.2)  # of all that growth can do to it
    layer = MODEL.embed * MODEL.mlp * 4
    monkeypatch.setattr(plan, "MIXTURE_BYTES", 2 * layer)  # a few target layers at a time
    report = growing.grow_checkpoint(path, str(tmp_path / "grown"), learned_map)
    assert report.mode == "stream"
    assert "changes its values" in report.reason
    streamed = stored_params(tmp_path / "grown")
    for name, leaf in flatten(on_one_device(params, learned_map)).items():
        np.testing.assert_allclose(streamed[name], leaf, rtol=1e-5, atol=1e-5, err_msg=name)


def test_before_learning_it_streams_the_layers_of_a_stack_bit_for_bit(source, tmp_path):
    path, _ = source
    for operator in ("learned", "stack"):
        growth_map = make_map(MODEL, None, operator, factor=2)
        growing.stream(path, str(tmp_path / operator), growth_map)
    stacked = stored_params(tmp_path / "stack")
    for name, leaf in stored_params(tmp_path / "learned").items():
        np.testing.assert_array_equal(leaf, stacked[name], err_msg=name)


def test_the_matrices_lie_with_the_checkpoint_and_with_all_that_come_from_it(
    source, tmp_path, learned_map
):
    path, _ = source
    growing.stream(path, str(tmp_path / "grown"), learned_map)
    lineage = layout.read_lineage(str(tmp_path / "grown"))
    digest = learned_map.matrices.digest
    assert lineage.growth[-1].map.matrices.digest == digest
    assert lineage.growth[-1].map.matrices.arrays is None
    for name, array in learned_map.matrices.arrays.items():
        np.testing.assert_array_equal(lineage.matrices[digest].arrays[name], array)

    again = make_map(learned_map.target, None, "stack", factor=2)
    for mode in ("stream", "reference"):
        growing.grow_checkpoint(str(tmp_path / "grown"), str(tmp_path / mode), again, mode)
        assert layout.read_lineage(str(tmp_path / mode)).matrices == lineage.matrices


def test_the_trainers_checkpoints_keep_them_too(source, tmp_path, learned_map):
    _, params = source
    lineage = dataclasses.replace(lineage_of(params).grown(learned_map, {}), digests={})
    checkpoints = Checkpoints(str(tmp_path), keep=1, keep_every_steps=0)
    for step in (1, 2):
        checkpoints.save(step, params, None, lineage)
    checkpoints.close()
    assert layout.read_lineage(str(tmp_path / "2")).matrices == lineage.matrices


def test_damaged_or_missing_matrices_are_named(source, tmp_path, learned_map):
    _, params = source
    path = tmp_path / "grown"
    save_checkpoint(str(path), params, lineage_of(params).grown(learned_map, {}))
    (file,) = (path / "matrices").glob("*.npz")
    data = bytearray(file.read_bytes())
    data[data.find(b"width/mlp.npy") + 400] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"\.npz: (is not what was saved|holds no matrices)"):
        layout.read_lineage(str(path))
    file.unlink()
    with pytest.raises(UserError, match=r"\.npz: cannot be read; files are missing"):
        layout.read_lineage(str(path))


def test_it_cannot_be_grown_by_reference(source, tmp_path, learned_map):
    path, _ = source
    with pytest.raises(reference.CannotReferenceError, match="changes its values"):
        growing.grow_checkpoint(path, str(tmp_path / "grown"), learned_map, "reference")


def memory_of(work, path):
    return next(work.memory(leaf) for leaf in work.params if leaf.recipe.path == path)


def test_the_plan_counts_what_is_read_again(source, learned_map, monkeypatch):
    path, _ = source
    once = choose(plan.plan(path, "/nowhere/grown", learned_map), "stream")
    stored = [leaf.stored for leaf in once.work.params]
    read = once.bytes_read
    assert read == sum(leaf.nbytes for leaf in stored)
    memory = memory_of(once.work, "layers/mlp/up")
    monkeypatch.setattr(plan, "MIXTURE_BYTES", 1)
    again = choose(plan.plan(path, "/nowhere/grown", learned_map), "stream")
    stacked = [leaf.stored for leaf in once.work.params if leaf.recipe.declaration.stacked]
    layers = sum(leaf.nbytes for leaf in stacked)
    assert again.bytes_read == read + 5 * layers  # for each of six target layers
    assert memory_of(again.work, "layers/mlp/up") < memory
