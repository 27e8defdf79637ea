"""The lock of a workdir: one writer, and none after the writer's death."""

import os
import signal
import subprocess
import sys

import pytest

from prts_jax.checkpoint.lock import workdir_lock
from prts_jax.errors import UserError

HOLD = """
import sys, time
from prts_jax.checkpoint.lock import workdir_lock
with workdir_lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path, holder):
    with (
        pytest.raises(UserError, match=f"process {holder.pid} is writing there"),
        workdir_lock(str(tmp_path)),
    ):
        pass


def test_a_killed_writer_does_not_block_the_next(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with workdir_lock(str(tmp_path)):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())


def test_the_lock_can_be_taken_again_after_release(tmp_path):
    for _ in range(2):
        with workdir_lock(str(tmp_path / "made")):
            pass


def refuse_after(directory, *writes):
    with workdir_lock(str(directory)):
        for path in writes:
            path.parent.mkdir(exist_ok=True)
            path.write_text("{}")
        (directory / "checkpoints").mkdir()
        raise UserError("no")


def test_a_refusal_takes_along_the_directories_made_for_it(tmp_path):
    with pytest.raises(UserError, match="no"):
        refuse_after(tmp_path / "new" / "run")
    assert not list(tmp_path.iterdir())


def test_a_refusal_leaves_what_was_there_before_or_was_written(tmp_path):
    (tmp_path / "old").mkdir()
    metrics = tmp_path / "new" / "run" / "metrics.jsonl"
    for directory, writes in ((tmp_path / "old", ()), (metrics.parent, (metrics,))):
        with pytest.raises(UserError, match="no"):
            refuse_after(directory, *writes)
        assert directory.exists()
    assert metrics.exists()


def test_a_home_directory_is_locked_where_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with workdir_lock("~/run"):
        assert (tmp_path / "run" / ".lock").exists()


def test_a_directory_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written"),
        workdir_lock(str(tmp_path / "file" / "run")),
    ):
        pass


def test_object_stores_have_no_locks():
    with workdir_lock("gs://bucket/run"), workdir_lock("gs://bucket/run"):
        pass
