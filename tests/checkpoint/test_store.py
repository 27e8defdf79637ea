"""Saving and restoring: exact, in the background, refused where something does not match."""

import dataclasses
import json
import os
import random as random_module
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prts_jax.checkpoint import arrays, retention, store
from prts_jax.checkpoint.damage import DamagedError
from prts_jax.checkpoint.digests import optimizer_digests, start_digests
from prts_jax.checkpoint.items import saved_at
from prts_jax.checkpoint.layout import contents, read_lineage
from prts_jax.checkpoint.restore import restore_optimizer, restore_params
from prts_jax.checkpoint.store import Checkpoints, save_checkpoint
from prts_jax.config import ModelConfig
from prts_jax.errors import StorageError, UserError
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare
from prts_jax.tree import flatten, unflatten
from tests.checkpoint.tiny import (
    DECLARED,
    MODEL,
    abstract,
    flip_byte,
    lineage_of,
    random_params,
    write_source,
)
from tests.growth.on_disk import growing
from tests.train.tiny import stored_params

PROGRAMS = Path(__file__).parent / "programs"


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert one.dtype == two.dtype
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


def save_steps(directory, steps, keep, keep_every_steps=0):
    params = random_params()
    checkpoints = Checkpoints(str(directory), keep, keep_every_steps)
    for step in steps:
        checkpoints.save(step, params, None, lineage_of(params, step=step))
    checkpoints.close()
    return checkpoints


def test_checkpoints_hours_apart_are_kept(tmp_path, monkeypatch):
    began = time.time()
    [first] = save_steps(tmp_path, [1], keep=1).steps()
    assert began <= saved_at(f"{tmp_path}/{first}") <= time.time()
    assert saved_at(str(tmp_path)) == 0.0
    hours = {1: 10.0, 2: 10.9, 3: 11.1, 4: 12.0, 5: 13.0, 6: 13.1, 7: 13.2}
    monkeypatch.setattr(
        retention, "saved_at", lambda path: 3600 * hours[int(path.rpartition("/")[2])]
    )
    checkpoints = Checkpoints(str(tmp_path), keep=2, keep_every_steps=0, keep_every_hours=1.0)
    params = random_params()
    for step in range(2, 8):
        checkpoints.save(step, params, None, lineage_of(params, step=step))
    checkpoints.close()
    assert checkpoints.steps() == [1, 3, 5, 6, 7]


def test_parameters_and_optimizer_come_back_bit_for_bit(tmp_path):
    params = random_params()
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3)))
    optimizer = jax.tree.map(lambda leaf: leaf + 3, tx.init(params))
    checkpoints = Checkpoints(str(tmp_path), keep=2, keep_every_steps=0)
    checkpoints.save(7, params, optimizer, lineage_of(params))
    checkpoints.close()
    path = checkpoints.path(7)
    assert_equal(restore_params(path, abstract(params), DECLARED), params)
    assert_equal(restore_optimizer(path, abstract(optimizer)), optimizer)
    digests = optimizer_digests(optimizer)
    assert {"1/0/mu/layers/mlp/up", "1/0/count"} <= digests.keys()
    expected = dataclasses.replace(lineage_of(params), optimizer_digests=digests)
    assert read_lineage(path) == expected


def test_parameters_may_be_donated_as_soon_as_save_returns(tmp_path):
    params = random_params(seed=3)
    expected = jax.tree.map(np.array, params)
    double = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree), donate_argnums=0)
    checkpoints = Checkpoints(str(tmp_path), keep=2, keep_every_steps=0)
    checkpoints.save(1, params, None, lineage_of(params))
    for _ in range(3):
        params = double(params)
    checkpoints.close()
    assert_equal(restore_params(checkpoints.path(1), abstract(params), DECLARED), expected)


def test_a_save_returns_before_its_digests_are_computed(tmp_path, monkeypatch):
    computed = threading.Event()

    def late(*trees):
        def waiting(result):
            return lambda: result() if computed.wait(60) else None

        return tuple(map(waiting, start_digests(*trees)))

    monkeypatch.setattr(store, "start_digests", late)
    params, checkpoints = random_params(), Checkpoints(str(tmp_path), keep=2, keep_every_steps=0)
    checkpoints.save(1, params, None, dataclasses.replace(lineage_of(params, step=1), digests={}))
    assert checkpoints.steps() == []
    computed.set()
    checkpoints.close()
    assert read_lineage(checkpoints.path(1)) == lineage_of(params, step=1)


def test_every_layer_of_a_stacked_leaf_is_one_chunk(tmp_path):
    write_source(tmp_path / "ckpt")
    for path, leaf in arrays.describe(str(tmp_path / "ckpt")).items():
        assert leaf.shape == DECLARED[path].shape
        layer = (1, *leaf.shape[1:]) if DECLARED[path].stacked else leaf.shape
        assert leaf.chunk == layer, path


def test_names_on_disk_are_stable(tmp_path):
    write_source(tmp_path / "ckpt")
    assert sorted(arrays.describe(str(tmp_path / "ckpt"))) == [
        "final_norm",
        "head",
        "layers/attention/k",
        "layers/attention/o",
        "layers/attention/q",
        "layers/attention/v",
        "layers/attention_norm",
        "layers/mlp/down",
        "layers/mlp/gate",
        "layers/mlp/up",
        "layers/mlp_norm",
        "token_embedding",
    ]
    assert sorted(child.name for child in (tmp_path / "ckpt").iterdir() if child.is_dir()) == [
        "lineage",
        "params",
    ]


def test_a_model_without_layers_can_be_saved(tmp_path):
    model = ModelConfig(vocab=48, layers=0, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24)
    declarations = declare(model)
    params = random_params(declarations)
    empty = {"mu": jnp.zeros((0, 4)), "count": jnp.int32(3)}
    checkpoints = Checkpoints(str(tmp_path), 1, 0)
    checkpoints.save(1, params, empty, lineage_of(params, model, declarations))
    checkpoints.close()
    path = checkpoints.path(1)
    assert_equal(restore_params(path, abstract(params), declarations), params)
    assert_equal(restore_optimizer(path, abstract(empty)), empty)


def test_the_newest_and_the_multiples_are_kept(tmp_path):
    checkpoints = save_steps(tmp_path, range(1, 8), keep=2, keep_every_steps=3)
    assert checkpoints.steps() == [3, 6, 7]
    assert checkpoints.latest() == 7
    assert sorted(child.name for child in tmp_path.iterdir()) == ["3", "6", "7"]


def test_without_checkpoints_there_is_no_latest(tmp_path):
    assert Checkpoints(str(tmp_path / "new"), 1, 0).latest() is None


def test_opening_removes_only_the_rests_of_its_own_saves_and_removals(tmp_path):
    save_steps(tmp_path, [1, 2], keep=2)
    for ours in ("3.orbax-checkpoint-tmp", "4.orbax-checkpoint-tmp-1700000000", "0.removing"):
        (tmp_path / ours / "params").mkdir(parents=True)
    for theirs in ("30.keep", "x.orbax-checkpoint-tmp", "best", "1.damaged-params", "007"):
        (tmp_path / theirs).mkdir()
    (tmp_path / "NOTES.txt").write_text("mine")
    (tmp_path / "latest").symlink_to(tmp_path / "2")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "2" / "lineage" / "lineage.json").unlink()
    checkpoints = Checkpoints(str(tmp_path), 2, 0)
    assert checkpoints.steps() == [1]
    theirs = ["007", "30.keep", "NOTES.txt", "best", "gone", "latest", "x.orbax-checkpoint-tmp"]
    left = sorted(child.name for child in tmp_path.iterdir())
    assert left == sorted([*theirs, "1", "2", "1.damaged-params"])
    assert contents(str(tmp_path)).foreign == tuple(theirs)
    with pytest.raises(UserError, match="2: exists already"):
        checkpoints.save(2, random_params(), None, lineage_of(random_params(), step=2))


def test_a_link_to_a_checkpoint_is_removed_without_the_checkpoint(tmp_path):
    save_steps(tmp_path / "elsewhere", [1], keep=1)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "1").symlink_to(tmp_path / "elsewhere" / "1")
    save_steps(tmp_path / "run", [2], keep=1)
    assert [child.name for child in (tmp_path / "run").iterdir()] == ["2"]
    assert read_lineage(str(tmp_path / "elsewhere" / "1")).step == 1


@pytest.fixture
def synced(monkeypatch):
    """The paths that reach the disk, in order; a rename is the path it gives."""
    paths, fsync, rename = [], os.fsync, os.rename

    def recorded_sync(descriptor):
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def recorded_rename(source, target, **options):
        rename(source, target, **options)
        paths.append(f"{target}!")

    monkeypatch.setattr(os, "fsync", recorded_sync)
    monkeypatch.setattr(os, "rename", recorded_rename)
    return paths


def test_files_and_directories_reach_the_disk_before_a_checkpoint_counts(tmp_path, synced):
    save_steps(tmp_path, [1], keep=1)
    grown = tmp_path / "grown"
    growing.stream(str(tmp_path / "1"), str(grown), make_map(MODEL, None, "stack", 2))
    for path, temporary in (
        (tmp_path / "1", tmp_path / "1.orbax-checkpoint-tmp"),
        (grown, tmp_path / ".grown.growing"),
    ):
        counts = synced.index(f"{path}!")
        for file in ("lineage/lineage.json", "params/_METADATA", "params/manifest.ocdbt", "."):
            assert os.path.normpath(f"{temporary}/{file}") in synced[:counts], file
        assert str(tmp_path) in synced[counts:]


def test_a_step_is_saved_once(tmp_path):
    with pytest.raises(UserError, match="exists already"):
        save_steps(tmp_path, [4, 4], keep=2)


def test_an_existing_directory_is_not_overwritten(tmp_path):
    write_source(tmp_path / "ckpt")
    with pytest.raises(UserError, match="exists already"):
        write_source(tmp_path / "ckpt")


def test_another_shape_is_refused_naming_the_leaf_and_both_shapes(tmp_path):
    params = write_source(tmp_path / "ckpt")
    wanted = flatten(abstract(params))
    leaf = wanted["layers/mlp/up"]
    wanted["layers/mlp/up"] = jax.ShapeDtypeStruct(
        (6, *leaf.shape[1:]), leaf.dtype, sharding=leaf.sharding
    )
    message = r"layers/mlp/up: has shape \(3, 16, 24\) on disk and \(6, 16, 24\) by the config"
    with pytest.raises(UserError, match=message):
        restore_params(str(tmp_path / "ckpt"), unflatten(wanted), DECLARED)


def test_another_dtype_is_refused(tmp_path):
    params = write_source(tmp_path / "ckpt")
    wanted = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16, sharding=leaf.sharding), params
    )
    with pytest.raises(UserError, match=r"final_norm: is float32 on disk, bfloat16 wanted"):
        restore_params(str(tmp_path / "ckpt"), wanted, DECLARED)


def test_another_tree_is_refused_naming_the_leaf(tmp_path):
    params = write_source(tmp_path / "ckpt")
    tied = abstract({name: leaf for name, leaf in params.items() if name != "head"})
    with pytest.raises(UserError, match="head: is on disk but not in the config"):
        restore_params(str(tmp_path / "ckpt"), tied, DECLARED)
    more = abstract(params | {"extra_norm": jnp.ones(4)})
    with pytest.raises(UserError, match="extra_norm: is missing"):
        restore_params(str(tmp_path / "ckpt"), more, DECLARED)


def test_a_grown_checkpoint_has_no_optimizer_state(tmp_path):
    params = write_source(tmp_path / "ckpt")
    with pytest.raises(UserError, match="holds no optimizer state"):
        restore_optimizer(str(tmp_path / "ckpt"), abstract(params))


def test_another_optimizer_is_refused(tmp_path):
    params = random_params()
    checkpoints = Checkpoints(str(tmp_path), 1, 0)
    checkpoints.save(1, params, optax.sgd(0.1, momentum=0.9).init(params), lineage_of(params))
    checkpoints.close()
    wanted = jax.eval_shape(optax.adam(0.1).init, params)
    with pytest.raises(UserError, match="0/count: is missing"):
        restore_optimizer(checkpoints.path(1), wanted)


@pytest.mark.parametrize(
    ("path", "layer", "named"),
    [("layers/attention/q", 1, "layers/attention/q, layer 1"), ("head", None, "head")],
)
def test_a_flipped_bit_is_found_naming_leaf_and_layer(tmp_path, path, layer, named):
    params = write_source(tmp_path / "ckpt")
    leaf = np.asarray(flatten(params)[path])
    flip_byte(tmp_path / "ckpt", (leaf if layer is None else leaf[layer]).tobytes())
    with pytest.raises(UserError, match=f"{named}: is not what was saved"):
        restore_params(str(tmp_path / "ckpt"), abstract(params), DECLARED)


def test_a_flipped_bit_of_the_optimizer_is_found_naming_leaf_and_layer(tmp_path):
    params = random_params()
    optimizer = {"mu": random_params(seed=5), "count": jnp.int32(4)}
    checkpoints = Checkpoints(str(tmp_path), 1, 0)
    checkpoints.save(1, params, optimizer, lineage_of(params, step=1))
    checkpoints.close()
    layer = np.asarray(optimizer["mu"]["layers"]["mlp"]["up"])[2]
    flip_byte(tmp_path / "1", layer.tobytes())
    with pytest.raises(DamagedError, match="mu/layers/mlp/up, layer 2: is not what was saved"):
        restore_optimizer(checkpoints.path(1), abstract(optimizer))
    shutil.rmtree(tmp_path / "1" / "optimizer")
    with pytest.raises(DamagedError, match="optimizer: cannot be read; files are missing"):
        restore_optimizer(checkpoints.path(1), abstract(optimizer))


@pytest.mark.parametrize("damage", ["truncate", "remove"])
def test_missing_or_truncated_files_are_a_user_error(tmp_path, damage):
    params = write_source(tmp_path / "ckpt")
    data = [file for file in (tmp_path / "ckpt" / "params").rglob("d/*") if file.is_file()]
    for file in data:
        file.write_bytes(file.read_bytes()[:10]) if damage == "truncate" else file.unlink()
    with pytest.raises(UserError, match=r"cannot be read") as caught:
        restore_params(str(tmp_path / "ckpt"), abstract(params), DECLARED)
    assert "\n" not in str(caught.value)


def run_program(name: str, *arguments: str, devices: int = 1) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(PROGRAMS / f"{name}.py"), *arguments],
        cwd=PROGRAMS.parents[2],
        env=os.environ | {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONPATH": "."},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_failed_save_in_the_background_is_one_clear_line(tmp_path):
    # The program lowers its limit of file sizes, which fails writes as a full disk does.
    process = run_program("save_to_a_full_disk", str(tmp_path))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    assert "could not be written" in out
    assert len(out.splitlines()) == 1
    assert "Event loop is closed" not in err  # absl logs the first error itself
    assert Checkpoints(str(tmp_path), 1, 0).steps() == [1]


def test_a_save_that_a_full_disk_refuses_at_once_can_be_repeated(tmp_path):
    params, limit = random_params(), resource.RLIMIT_FSIZE
    checkpoints = Checkpoints(str(tmp_path), keep=2, keep_every_steps=0)
    soft, hard = resource.getrlimit(limit)
    try:
        resource.setrlimit(limit, (0, hard))
        with pytest.raises(StorageError, match="/1: could not be written .File too large"):
            checkpoints.save(1, params, None, lineage_of(params, step=1))
    finally:
        resource.setrlimit(limit, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "1.orbax-checkpoint-tmp").mkdir()  # as if its removal had failed
    checkpoints.save(1, params, None, lineage_of(params, step=1))
    checkpoints.close()
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_late_errors_of_a_failed_save_are_hidden_and_others_shown(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    Checkpoints(str(tmp_path), 1, 0).close()
    late = SimpleNamespace(exc_value=RuntimeError("Event loop is closed"), object=None)
    other = SimpleNamespace(exc_value=RuntimeError("another fault"), object=None)
    sys.unraisablehook(late)
    sys.unraisablehook(other)
    assert shown == [other]


def test_a_save_killed_at_any_moment_leaves_only_whole_checkpoints(tmp_path):
    delays = random_module.Random(0)
    for _ in range(3):
        process = run_program("save_forever", str(tmp_path))
        assert process.stdout is not None
        for _ in range(2):  # one is whole by then
            line = process.stdout.readline()
        newest_whole = int(line.split()[1].rstrip(";")) - 1
        time.sleep(delays.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        checkpoints = Checkpoints(str(tmp_path), 3, 0)
        assert (checkpoints.latest() or 0) >= newest_whole
        assert {child.name for child in tmp_path.iterdir()} == set(map(str, checkpoints.steps()))
        for step in checkpoints.steps():
            params = random_params(seed=step)
            restored = restore_params(checkpoints.path(step), abstract(params), DECLARED)
            assert_equal(restored, params)


@pytest.fixture(scope="module")
def on_eight_devices(tmp_path_factory):
    process = run_program("on_eight_devices", str(tmp_path_factory.mktemp("eight")), devices=8)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err[-6000:]
    return json.loads(out)


def test_a_checkpoint_of_one_mesh_restores_on_another(on_eight_devices):
    assert on_eight_devices["restored exactly"] == {
        "fsdp=8 → fsdp=4 tensor=2": True,
        "fsdp=8 → one device": True,
        "fsdp=4 tensor=2 → fsdp=8": True,
        "one device → fsdp=8": True,
    }


def test_digests_do_not_depend_on_the_mesh(on_eight_devices):
    assert on_eight_devices["digests agree"]


def test_sharded_leaves_are_still_chunked_layer_by_layer(on_eight_devices):
    assert on_eight_devices["layers per chunk"] == 1


def test_growth_on_the_mesh_is_exact_and_needs_no_collectives(on_eight_devices):
    assert on_eight_devices["grown exactly"]
    assert on_eight_devices["collectives in growth"] == []


def test_streaming_reads_what_a_mesh_wrote(on_eight_devices):
    assert on_eight_devices["streamed exactly"]


def test_files_that_a_mesh_wrote_can_be_shared(on_eight_devices):
    assert on_eight_devices["linked exactly"] == [True] * 3


def test_the_model_of_a_checkpoint_is_in_its_lineage(tmp_path):
    save_checkpoint(str(tmp_path / "c"), random_params(), lineage_of(random_params()))
    assert read_lineage(str(tmp_path / "c")).model == MODEL


def run_two_processes(name: str, folder: Path, devices: int) -> list[dict]:
    """Runs a program as two processes and returns the last line of each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        run_program(name, str(port), str(number), str(folder), devices=devices) for number in (0, 1)
    ]
    reports = []
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-6000:]
        reports.append(json.loads(out.splitlines()[-1]))
    return reports


@pytest.mark.slow
@pytest.mark.alone
def test_two_processes_save_and_restore_together(tmp_path):
    for report in run_two_processes("on_two_hosts", tmp_path, devices=4):
        assert report == {"digests": True, "restored exactly": True, "steps": [2, 3]}
    growth_map = make_map(MODEL, None, "stack", 2, "")
    growing.link(f"{tmp_path}/checkpoints/3", str(tmp_path / "grown"), growth_map)
    assert stored_params(tmp_path / "grown")  # compares the digests


@pytest.mark.slow
@pytest.mark.alone
def test_a_save_that_fails_on_one_process_has_failed_on_all_and_the_next_one_works(tmp_path):
    first, second = run_two_processes("one_host_fails_to_save", tmp_path, devices=1)
    for report in (first, second):
        (error,) = report["errors"]
        assert "checkpoints/2: could not be written (File too large); free space" in error
        assert report["steps"] == [2, 3]
        assert report["seconds"] < 60  # Orbax's barrier would wait for 600 s
    assert first["errors"][0].startswith("process 1: ")
    assert contents(f"{tmp_path}/checkpoints").unfinished == ()
