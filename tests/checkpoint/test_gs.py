"""Checkpoints and growth on gs://, against a fake server: no renames, no locks, no TensorFlow."""

import dataclasses
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from prts_jax.checkpoint import lock
from prts_jax.checkpoint.commit import refuse_inside_checkpoint
from prts_jax.checkpoint.damage import DamagedError
from prts_jax.checkpoint.layout import contents, is_complete, newest_step, read_lineage, resolve
from prts_jax.checkpoint.removal import set_aside
from prts_jax.checkpoint.restore import restore_optimizer, restore_params
from prts_jax.checkpoint.store import Checkpoints
from prts_jax.errors import StorageError, UserError
from prts_jax.formats import convert, export
from prts_jax.growth.operators import make_map
from prts_jax.tree import flatten
from tests.checkpoint.tiny import DECLARED, MODEL, abstract, lineage_of, random_params, write_source
from tests.gcs import fake_gcs, gcs_server, outage
from tests.growth.on_disk import growing
from tests.train.tiny import stored_params

__all__ = ["fake_gcs", "gcs_server", "outage"]  # fixtures

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_saves_resumes_and_drops_old_checkpoints(fake_gcs):
    params = random_params()
    checkpoints = Checkpoints(f"{fake_gcs}/run/checkpoints", keep=2, keep_every_steps=0)
    assert checkpoints.latest() is None
    for step in (1, 2, 3):
        checkpoints.save(step, params, {"mu": params}, lineage_of(params, step=step))
    checkpoints.close()
    assert checkpoints.steps() == [2, 3]
    path = resolve(f"{fake_gcs}/run")
    assert path == f"{fake_gcs}/run/checkpoints/3"
    assert read_lineage(path).step == 3
    restored = flatten(restore_params(path, abstract(params), DECLARED))
    moments = flatten(restore_optimizer(path, abstract({"mu": params})))
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(restored[name], leaf)
        np.testing.assert_array_equal(moments[f"mu/{name}"], leaf)


def saved(parent, *steps):
    params = random_params()
    checkpoints = Checkpoints(parent, keep=5, keep_every_steps=0)
    for step in steps:
        checkpoints.save(step, params, None, lineage_of(params, step=step))
    checkpoints.close()
    return checkpoints


def names(parent):
    there = contents(parent)
    return sorted(
        [*map(str, there.complete), *there.unfinished, *there.aside, *there.foreign]
        + [f"{step} broken" for step in there.broken]
    )


def test_the_rest_of_a_killed_save_does_not_count_and_is_written_anew(fake_gcs):
    parent = f"{fake_gcs}/run/checkpoints"
    saved(parent, 1)
    (epath.Path(parent) / "1" / "commit_success.txt").unlink()  # as a kill would leave it
    (epath.Path(parent) / "1.saving").write_text("")
    again = saved(parent)
    assert (again.latest(), names(parent)) == (None, [])
    assert saved(parent, 1).steps() == [1]
    assert names(parent) == ["1"]


def test_a_removal_that_was_killed_is_finished(fake_gcs):
    parent = f"{fake_gcs}/run/checkpoints"
    saved(parent, 1, 2)
    (epath.Path(parent) / "1.removing").write_text("")
    (epath.Path(parent) / "notes").write_text("mine")
    assert contents(parent).complete == (2,)
    saved(parent)
    assert names(parent) == ["2", "notes"]


def test_a_lost_marker_is_damage_and_what_is_damaged_is_moved_aside_whole(fake_gcs):
    parent = f"{fake_gcs}/run/checkpoints"
    saved(parent, 1, 2)
    markers = [epath.Path(parent) / str(step) / "commit_success.txt" for step in (1, 2)]
    for marker in markers:
        marker.unlink()
    saved(parent)
    assert names(parent) == ["1 broken", "2 broken"]
    with pytest.raises(DamagedError, match=r"2: has no commit_success\.txt") as damage:
        newest_step(parent)
    with pytest.raises(DamagedError, match=r"no other checkpoint .* \(1 has no commit_success"):
        set_aside(parent, damage.value)
    markers[0].write_text("")
    assert "the run resumes from step 1" in set_aside(parent, damage.value)
    assert names(parent) == ["1", "2.damaged-lineage"]
    assert newest_step(parent) == 1
    params = random_params()
    restored = flatten(restore_params(f"{parent}/2.damaged-lineage", abstract(params), DECLARED))
    for name, leaf in flatten(params).items():
        np.testing.assert_array_equal(restored[name], leaf)


@pytest.mark.slow
def test_an_outage_at_the_start_of_a_command_names_the_address(fake_gcs, outage):
    outage.begins_after(0)
    with pytest.raises(StorageError, match=f"{fake_gcs}/run: cannot be used .*storage works"):
        refuse_inside_checkpoint(f"{fake_gcs}/run")


def test_an_outage_in_the_middle_of_a_save_or_a_read_loses_nothing(fake_gcs, outage):
    """At three requests of each; the same save and the same read succeed after it."""
    params = random_params()
    parent = f"{fake_gcs}/run/checkpoints"
    saved(parent, 1)
    before = outage.requests
    saved(parent, 2)
    needed = outage.requests - before
    for part in range(1, 4):
        outage.begins_after(needed * part // 4)
        with pytest.raises(StorageError, match="see whether the storage works"):
            saved(parent, 3)
        outage.begins_after(math.inf)
        assert contents(parent).complete == (1, 2)
    assert saved(parent, 3).steps() == [1, 2, 3]

    def read():
        read_lineage(f"{parent}/3")
        return flatten(restore_params(f"{parent}/3", abstract(params), DECLARED))

    before = outage.requests
    read()
    needed = outage.requests - before
    for part in range(3):
        outage.begins_after(needed * part // 3)
        with pytest.raises(StorageError, match="see whether the storage works"):
            read()
        outage.begins_after(math.inf)
    for name, leaf in read().items():
        np.testing.assert_array_equal(leaf, flatten(params)[name])


def test_growth_streams_between_object_stores_and_disks(fake_gcs, tmp_path):
    params = write_source(tmp_path / "source")
    growth_map = make_map(MODEL, None, "stack", 2, "")
    growing.stream(str(tmp_path / "source"), f"{fake_gcs}/six", growth_map)
    again = make_map(growth_map.target, None, "layers", 0, "0:6,3:6")
    growing.stream(f"{fake_gcs}/six", f"{fake_gcs}/nine", again)
    grown = read_lineage(f"{fake_gcs}/nine")
    assert grown.model.layers == 9
    mesh_free = {
        path: np.asarray(leaf)[[0, 1, 2, 0, 1, 2, 0, 1, 2]] if DECLARED[path].stacked else leaf
        for path, leaf in flatten(params).items()
    }
    for path, leaf in stored_params(f"{fake_gcs}/nine").items():
        np.testing.assert_array_equal(leaf, mesh_free[path], err_msg=path)
    with pytest.raises(UserError, match="exists already"):
        growing.stream(f"{fake_gcs}/six", f"{fake_gcs}/nine", again)


def test_a_growth_that_fails_leaves_no_checkpoint(fake_gcs, tmp_path, monkeypatch):
    write_source(tmp_path / "source")

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    growth_map = make_map(MODEL, None, "stack", 2, "")
    with pytest.raises(KeyboardInterrupt):
        growing.stream(str(tmp_path / "source"), f"{fake_gcs}/grown", growth_map, progress=stop)
    assert not is_complete(f"{fake_gcs}/grown")
    growing.stream(str(tmp_path / "source"), f"{fake_gcs}/grown", growth_map)
    assert is_complete(f"{fake_gcs}/grown")


def test_two_growths_into_one_address_are_refused(fake_gcs, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 0.1)
    write_source(tmp_path / "source")
    growth_map = make_map(MODEL, None, "stack", 2, "")
    with (
        lock.object_lock(f"{fake_gcs}/.grown.growing"),
        pytest.raises(UserError, match=rf"process {os.getpid()} on .* is writing there; wait"),
    ):
        growing.stream(str(tmp_path / "source"), f"{fake_gcs}/grown", growth_map)
    assert not is_complete(f"{fake_gcs}/grown")
    growing.stream(str(tmp_path / "source"), f"{fake_gcs}/grown", growth_map)
    assert is_complete(f"{fake_gcs}/grown")
    assert not epath.Path(f"{fake_gcs}/.grown.growing").exists()


def test_the_lock_of_a_killed_growth_is_taken_over(fake_gcs, monkeypatch):
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.4)
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 60.0)  # as good as dead
    address = f"{fake_gcs}/.other.growing"
    with lock.object_lock(address) as check_first:
        check_first()
        with lock.object_lock(address) as check_second:
            with pytest.raises(StorageError, match="another process has taken this lock"):
                check_first()  # should it live after all, it commits nothing
            check_second()
    assert not epath.Path(address).exists()


NO_TENSORFLOW = """
import sys
from prts_jax.cli import grow, inspect
assert grow.main(["--source", sys.argv[1], "--target", sys.argv[2], "--factor", "2"]) == 0
assert inspect.main([sys.argv[2]]) == 0
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "seqio")])
"""


def test_growing_on_gs_never_loads_tensorflow(fake_gcs):
    write_source(f"{fake_gcs}/source")
    process = subprocess.run(
        [sys.executable, "-c", NO_TENSORFLOW, f"{fake_gcs}/source", f"{fake_gcs}/grown"],
        cwd=ROOT,
        env=os.environ.copy(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr[-4000:]
    assert process.stdout.splitlines()[-1] == "[]"


def test_files_cannot_be_shared_with_an_object_store_and_layers_are_streamed(fake_gcs, tmp_path):
    write_source(tmp_path / "source")
    growth_map = make_map(MODEL, None, "stack", 2, "")
    report = growing.grow_checkpoint(str(tmp_path / "source"), f"{fake_gcs}/grown", growth_map)
    assert (report.mode, report.reason) == ("stream", "an object store has no hard links")
    assert is_complete(f"{fake_gcs}/grown")
    with pytest.raises(UserError, match="no hard links; use --mode=stream"):
        growing.grow_checkpoint(
            str(tmp_path / "source"), f"{fake_gcs}/again", growth_map, "reference"
        )


def test_models_are_converted_from_and_to_object_stores(fake_gcs, tmp_path):
    """disk → gs → gs → disk, each reading what the one before wrote; all values stay."""
    write_source(tmp_path / "ours")
    tokenizer = '{"model": {"vocab": {}}}'
    ours = convert.open_checkpoint(str(tmp_path / "ours"))
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    export.write_huggingface(
        ours, f"{fake_gcs}/hf", tokenizer=str(tmp_path / "tokenizer.json"), shard_bytes=5000
    )
    remote = convert.open_source("hf", f"{fake_gcs}/hf")
    assert remote.model == MODEL
    convert.write_checkpoint(remote, f"{fake_gcs}/imported")
    assert is_complete(f"{fake_gcs}/imported")
    back = convert.open_source("orbax", f"{fake_gcs}/imported")
    export.write_huggingface(back, str(tmp_path / "back"))
    actual = convert.open_source("hf", str(tmp_path / "back"))
    assert convert.first_difference(ours, actual, "float32") == ""
    assert (tmp_path / "back" / "tokenizer.json").read_text() == tokenizer
    with pytest.raises(UserError, match="exists already"):
        convert.write_checkpoint(remote, f"{fake_gcs}/imported")


def test_a_conversion_that_fails_leaves_nothing_in_the_bucket(fake_gcs, tmp_path):
    write_source(tmp_path / "ours")
    ours = convert.open_checkpoint(str(tmp_path / "ours"))

    def read(leaf, layer):
        if leaf == "layers/mlp/up":
            raise UserError("the source is damaged")
        return ours.read(leaf, layer)

    damaged = dataclasses.replace(ours, read=read)
    for write in (convert.write_checkpoint, export.write_huggingface):
        with pytest.raises(UserError, match="the source is damaged"):
            write(damaged, f"{fake_gcs}/out")
        assert not epath.Path(f"{fake_gcs}/out").exists()


def test_a_file_of_lit_gpt_is_read_from_disk_alone(fake_gcs):
    with pytest.raises(UserError, match="copy it"):
        convert.open_source("litgpt", f"{fake_gcs}/lit_model.pth", "6L2048H")
