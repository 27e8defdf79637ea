"""An optimizer's state grown on disk: what growth on the mesh gives, bit for bit, or nothing."""

import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prts_jax.checkpoint import commit
from prts_jax.checkpoint.damage import DamagedError
from prts_jax.checkpoint.layout import read_lineage
from prts_jax.checkpoint.restore import has_optimizer, restore_optimizer, restore_params
from prts_jax.errors import StorageError, UserError
from prts_jax.growth.operators import make_map
from prts_jax.growth.optimizer import grow_optimizer
from prts_jax.model.architecture import declare
from prts_jax.tree import named_leaves, unflatten
from tests.checkpoint.tiny import (
    ADAMW,
    MODEL,
    abstract,
    flip_byte,
    save_with_optimizer,
    write_source,
)
from tests.growth.on_disk.growing import grow_checkpoint

MAPS = {
    "stack": ("stack", {"factor": 2}),
    "a list": ("layers", {"layers": "0,1,1,2,2"}),
    "zero outputs": ("zero", {"factor": 2}),
    "new layers": ("random", {"factor": 2}),
    "split": ("split", {"widths": "embed=32,mlp=36,heads=8,kv_heads=4", "factor": 2}),
    "zero": ("zero_width", {"widths": "embed=24,mlp=36,heads=8,head_dim=8", "factor": 2}),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return save_with_optimizer(tmp_path_factory.mktemp("runs") / "checkpoints")


def zeros(declarations):
    return unflatten({path: jnp.zeros(d.shape) for path, d in declarations.items()})


@pytest.mark.parametrize(
    "name", ["stack", *(pytest.param(name, marks=pytest.mark.slow) for name in list(MAPS)[1:])]
)
def test_moments_on_disk_grow_as_on_the_mesh(source, tmp_path, name):
    path, state = source
    operator, options = MAPS[name]
    growth_map = make_map(MODEL, None, operator, **options)
    grown = str(tmp_path / "grown")
    grow_checkpoint(path, grown, growth_map, optimizer="copy")
    params = zeros(declare(growth_map.target))
    expected = grow_optimizer(
        state, growth_map, declare(growth_map.target), ADAMW.init, params, None
    )
    actual = restore_optimizer(grown, abstract(expected))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for leaf, value in named_leaves(expected).items():
        assert named_leaves(actual)[leaf].dtype == value.dtype
        np.testing.assert_array_equal(named_leaves(actual)[leaf], value, err_msg=leaf)
    restore_params(grown, abstract(params), declare(growth_map.target))  # verifies the digests
    assert read_lineage(grown).growth[-1].map == growth_map


@pytest.mark.parametrize("mode", ["reference", "stream"])
def test_parameters_grow_by_any_mode_and_moments_are_counted(source, tmp_path, mode):
    path, state = source
    growth_map = make_map(MODEL, None, "stack", 2)
    grown, bare = str(tmp_path / "grown"), str(tmp_path / "bare")
    report = grow_checkpoint(path, grown, growth_map, mode, optimizer="copy")
    without = grow_checkpoint(path, bare, growth_map, mode)
    assert report.mode == without.mode == mode
    before = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert report.bytes_read - without.bytes_read == before
    moments = sum(
        leaf.nbytes * (2 if "layers/" in name else 1) for name, leaf in named_leaves(state).items()
    )
    assert report.bytes_written - without.bytes_written == moments
    assert has_optimizer(grown, read_lineage(grown))
    assert not has_optimizer(bare, read_lineage(bare))


@pytest.mark.parametrize("mode", ["reference", "stream"])
def test_a_disk_too_small_for_the_moments_is_said_before_anything_is_written(
    source, tmp_path, monkeypatch, mode
):
    monkeypatch.setattr(commit, "free_bytes", lambda target: 60_000)  # for parameters alone
    growth_map = make_map(MODEL, None, "stack", 2)
    with pytest.raises(StorageError, match=r"needs .* kB and 60\.00 kB are free"):
        grow_checkpoint(source[0], str(tmp_path / "grown"), growth_map, mode, optimizer="copy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", ["reference", "stream"])
def test_a_damaged_moment_leaves_nothing_behind(tmp_path, mode):
    path, _ = save_with_optimizer(tmp_path / "checkpoints")
    for folder, _, files in os.walk(f"{path}/optimizer"):
        if os.path.basename(folder) == "d":  # the values; which file holds which varies
            for file in files:
                os.truncate(os.path.join(folder, file), os.path.getsize(f"{folder}/{file}") // 2)
    growth_map = make_map(MODEL, None, "stack", 2)
    with pytest.raises(UserError, match="cannot be read; files are missing or damaged"):
        grow_checkpoint(path, str(tmp_path / "grown"), growth_map, mode, optimizer="copy")
    assert os.listdir(tmp_path) == ["checkpoints"]


def test_what_cannot_be_copied_is_refused_before_anything_is_written(tmp_path):
    write_source(tmp_path / "without")
    factored, _ = save_with_optimizer(
        tmp_path / "factored", optax.adafactor(1e-3, min_dim_size_to_factor=4)
    )
    scheduled, _ = save_with_optimizer(
        tmp_path / "scheduled", optax.adamw(optax.constant_schedule(1e-3))
    )
    growth_map = make_map(MODEL, None, "stack", 2)
    for path, message in (
        (str(tmp_path / "without"), "holds no optimizer state to copy"),
        (factored, r"Adafactor's is factored"),
        (scheduled, r"depends on the config of the run to come; .*config\.init\.grow_from"),
    ):
        with pytest.raises(UserError, match=message):
            grow_checkpoint(path, str(tmp_path / "grown"), growth_map, optimizer="copy")
        assert not (tmp_path / "grown").exists()
    with pytest.raises(UserError, match=r"growth\.optimizer: 'cop' is unknown; did you mean"):
        grow_checkpoint(scheduled, str(tmp_path / "grown"), growth_map, optimizer="cop")


def test_a_grown_state_has_digests_and_damage_to_it_is_named(source, tmp_path):
    path, state = source
    grown = str(tmp_path / "grown")
    stack = make_map(MODEL, None, "stack", factor=2)
    grow_checkpoint(path, grown, stack, optimizer="copy")
    saved, built = (read_lineage(one).optimizer_digests for one in (path, grown))
    (name,) = (name for name in saved if name.endswith("nu/layers/mlp/up"))
    assert built[name] == saved[name] * 2
    assert built.keys() == saved.keys()

    damaged = tmp_path / "checkpoints" / "7"
    shutil.copytree(path, damaged)
    flip_byte(damaged, np.asarray(named_leaves(state)[name])[1].tobytes())
    with pytest.raises(DamagedError, match=f"optimizer: {name}, layer 1: is not what was saved"):
        grow_checkpoint(str(damaged), str(tmp_path / "never"), stack, optimizer="copy")
    shutil.rmtree(damaged / "optimizer")
    with pytest.raises(DamagedError, match="optimizer/_METADATA: cannot be read"):
        grow_checkpoint(str(damaged), str(tmp_path / "never"), stack, optimizer="copy")
