"""The lock of a workdir: one writer, and none after the writer's death."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from prts_jax.checkpoint import lock
from prts_jax.checkpoint.lock import workdir_lock
from prts_jax.errors import StorageError, UserError
from tests.gcs import fake_gcs, gcs_server

__all__ = ["fake_gcs", "gcs_server"]  # fixtures

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


RACE = """
import os, sys, time
from pathlib import Path
from prts_jax.checkpoint.lock import workdir_lock
from prts_jax.errors import UserError
root, begin, process = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
for trial in range(60):
    while time.time() < begin + trial * 0.02:
        pass
    workdir, held = root / str(trial) / "run", root / f"{trial}.held"
    try:
        with workdir_lock(str(workdir)):
            os.close(os.open(held, os.O_CREAT | os.O_EXCL))  # fails if another process holds it
            time.sleep(0.004)
            assert (workdir / ".lock").read_text() == str(os.getpid())
            held.unlink()
            if trial % 2:
                raise UserError("the winner gives up")
            (workdir / f"won_by_{process}").touch()
            time.sleep(0.01)
    except UserError as error:
        assert "is writing there" in str(error) or "gives up" in str(error), error
"""


def test_of_runs_that_start_at_one_moment_the_losers_touch_nothing(tmp_path):
    """Three processes, 60 new workdirs: one at a time holds each, and its files stay."""
    program = [sys.executable, "-c", RACE, str(tmp_path), str(time.time() + 2)]
    processes = [
        subprocess.Popen([*program, str(i)], stderr=subprocess.PIPE, text=True) for i in range(3)
    ]
    for process in processes:
        assert (process.communicate()[1], process.returncode) == ("", 0)
    for trial in range(60):
        if trial % 2:
            files = [path.name for path in (tmp_path / str(trial)).rglob("*") if path.is_file()]
            assert files in ([], [".lock"])  # it stays where a loser made the directory
        else:
            assert list((tmp_path / str(trial) / "run").glob("won_by_*"))


def test_a_lock_whose_file_was_removed_meanwhile_does_not_count(tmp_path, monkeypatch):
    path = tmp_path / ".lock"
    flock, calls = fcntl.flock, []

    def removed_before_it_is_locked(descriptor, how):
        if not calls:
            path.unlink()
        calls.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removed_before_it_is_locked)
    with workdir_lock(str(tmp_path)):
        assert len(calls) == 2
        assert path.read_text() == str(os.getpid())


def test_a_full_disk_is_no_mistake_of_the_user(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(StorageError, match="No space left"), workdir_lock(str(tmp_path / "run")):
        pass
    assert not (tmp_path / "run").exists()


def test_one_run_at_a_time_writes_into_a_workdir_in_an_object_store(fake_gcs, monkeypatch):
    monkeypatch.setattr(lock, "REFRESH_SECONDS", 0.05)
    monkeypatch.setattr(lock, "STALE_SECONDS", 2.0)
    workdir, start, winners, losers = f"{fake_gcs}/run", threading.Barrier(6, timeout=30), [], []

    def run(index):
        start.wait()
        try:
            with workdir_lock(workdir) as check:
                winners.append(index)
                start.wait()  # all have won or lost
                check()
        except UserError as error:
            losers.append(str(error))
            start.wait()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(winners), len(losers)) == (1, 5)
    assert all("is writing there" in e or "has taken this lock" in e for e in losers)
    with workdir_lock(workdir):  # released
        pass
