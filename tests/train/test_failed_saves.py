"""A run whose saves fail goes on and saves later; beyond a limit it ends with exit code 75."""

import contextlib
import math
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from prts_jax import cli
from prts_jax.checkpoint.layout import contents
from prts_jax.config import CheckpointConfig
from prts_jax.errors import LostLockError, StorageError
from prts_jax.train import saving
from prts_jax.train.metrics import read_metrics
from prts_jax.train.saving import Saves
from tests.gcs import fake_gcs, gcs_server, outage  # noqa: F401 - fixtures
from tests.train import tiny
from tests.train.interrupting import call_during_step


@pytest.fixture(scope="module")
def undisturbed(stores, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    assert cli.main(["train", *stores.flags(), f"--workdir={workdir}"]) == 0
    return workdir


@pytest.fixture
def full() -> Iterator[Callable[[int], None]]:
    """A function that limits the size of files, which fails writes half-way as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (soft if most < 0 else most, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_same_end(workdir: str, undisturbed: Path) -> None:
    assert tiny.curve(read_metrics(workdir)) == tiny.curve(read_metrics(str(undisturbed)))
    tiny.assert_same(tiny.stored_params(workdir), tiny.stored_params(undisturbed))


@pytest.mark.parametrize(("largest_file", "until"), [(20_000, 4), (100, 4), (20_000, 6)])
@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_does_not_end_the_run(
    stores, undisturbed, tmp_path, monkeypatch, capsys, full, largest_file, until
):
    workdir = str(tmp_path / "run")
    monkeypatch.setattr(saving, "FIRST_RETRY_SECONDS", 0.2)
    call_during_step(monkeypatch, 1, lambda: full(largest_file))
    if until < 6:
        call_during_step(monkeypatch, until, lambda: full(-1))
    else:  # at the end of the run, which waits for its last save
        monkeypatch.setattr(saving.time, "sleep", lambda seconds: full(-1))
    assert cli.main(["train", *stores.flags(), f"--workdir={workdir}"]) == 0
    text = capsys.readouterr().err
    failure = r"written \(File too large\); free space: 1 failed save; the run goes on and saves "
    assert re.search(failure, text)
    assert re.search("saved again, after [1-9]", text)
    assert "Traceback" not in text
    assert "internal error" not in text
    assert_same_end(workdir, undisturbed)
    there = contents(f"{workdir}/checkpoints")
    assert (there.complete[-1], there.unfinished, there.foreign) == (6, (), ())
    failed = [line.get("failed_saves", 0) for line in read_metrics(workdir)]
    assert failed == sorted(failed)
    assert failed[-1] > 0


@pytest.mark.parametrize("minutes", [0.0, 0.02])
@pytest.mark.parametrize(("step", "largest_file"), [(1, 20_000), (4, 100)])
@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_with_one_line_and_it_resumes_bit_for_bit(
    stores, undisturbed, tmp_path, monkeypatch, capsys, full, step, largest_file, minutes
):
    command = ["train", *stores.flags(), f"--workdir={tmp_path / 'run'}"]
    monkeypatch.setattr(saving, "FIRST_RETRY_SECONDS", 0.2)
    with monkeypatch.context() as patch:
        call_during_step(patch, step, lambda: full(largest_file))
        assert cli.main([*command, f"--config.checkpoint.retry_minutes={minutes}"]) == 75
    full(-1)
    text = capsys.readouterr().err
    last = r"prts train: .* written \(File too large\); free space, then start the same command "
    assert re.search(last + r"again \([1-9].* failed save.* in . s\)", text)
    assert "Traceback" not in text
    assert cli.main(command) == 0
    assert_same_end(str(tmp_path / "run"), undisturbed)


def test_an_object_store_that_refuses_for_a_while_does_not_end_the_run(
    stores,
    undisturbed,
    monkeypatch,
    fake_gcs,  # noqa: F811
    outage,  # noqa: F811
):
    monkeypatch.setattr(saving, "FIRST_RETRY_SECONDS", 0.0)
    call_during_step(monkeypatch, 1, lambda: outage.begins_after(0))
    call_during_step(monkeypatch, 4, lambda: outage.begins_after(math.inf))
    workdir = f"{fake_gcs}/run"
    assert cli.main(["train", *stores.flags(), f"--workdir={workdir}"]) == 0
    assert_same_end(workdir, undisturbed)
    assert contents(f"{workdir}/checkpoints").unfinished == ()
    assert read_metrics(workdir)[-1]["failed_saves"] > 0


@pytest.mark.slow
@pytest.mark.alone
def test_two_hosts_agree_on_a_save_that_failed_on_one_and_train_on(stores, undisturbed, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = str(Path(__file__).parent / "programs" / "full_on_one_host.py")
    flags = [*stores.flags(), f"--workdir={tmp_path / 'run'}", "--config.mesh.fsdp=2"]
    processes = [
        subprocess.Popen(
            [sys.executable, program, str(port), str(number), *flags],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": "."},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (0, 1)
    ]
    texts = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    failure = r"process 1: checkpoint .*/2: could not be written \(File too large\); free space: "
    assert re.search(failure + "1 failed save; the run goes on", texts[0])
    assert "saved again, after" in texts[0]
    there = contents(f"{tmp_path}/run/checkpoints")
    assert (there.complete[-1], there.unfinished) == (6, ())
    losses = [
        [line["loss"] for line in read_metrics(str(workdir)) if "loss" in line]
        for workdir in (tmp_path / "run", undisturbed)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


class Failing:
    """Stands for the checkpoints of a run: each wait fails with the error, if there is one."""

    error: Exception | None = None

    def has_ended(self) -> bool:
        return True

    def check(self) -> bool:
        self.wait()
        return True

    def wait(self) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error


class Run:
    """Saves of a run with a clock that the test moves."""

    def __init__(self, minutes: float) -> None:
        self.now, self.said, self.count = 0.0, [], 0
        self.checkpoints = Failing()
        config = CheckpointConfig(retry_minutes=minutes)
        self.saves = Saves(
            self.checkpoints,
            config,
            self.said.append,
            self.counted,
            contextlib.nullcontext,
            lambda: self.now,
        )

    def counted(self) -> None:
        self.count += 1

    def try_to_save(self, error: Exception | None = None) -> None:
        self.saves.started()
        self.checkpoints.error = error
        self.saves.after_step(with_line=True)

    def due(self, scheduled: bool = False) -> bool:
        return self.saves.due(scheduled, logging=True, must=False)


def test_a_failed_save_is_repeated_after_pauses_that_grow_until_one_succeeds():
    run = Run(minutes=60)
    for pause in (10, 20, 40, 80, 160, 300, 300):
        run.try_to_save(StorageError("full"))
        run.now += pause - 1
        assert not run.due(scheduled=True)
        run.now += 1
        assert run.due()
    assert run.said[1] == "full: 2 failed saves in a row; the run goes on and saves again in 20 s"
    assert run.count == len(run.said) == 7
    run.try_to_save()
    assert run.said[7:] == ["saved again, after 7 failed saves in a row"]
    assert run.due(scheduled=True)
    assert not run.due()
    run.now += 1e6
    run.try_to_save(StorageError("full"))  # the limit counts from the first failure in a row
    assert "1 failed save;" in run.said[-1]


def test_the_last_try_is_at_the_limit_and_then_the_run_ends():
    run = Run(minutes=1)
    for moment in (0, 10, 30):
        run.now = moment
        run.try_to_save(StorageError("full"))
    run.now = 60
    assert run.due()
    with pytest.raises(StorageError, match=r"^full, then start .* \(4 failed saves .* 1 min 00 s"):
        run.try_to_save(StorageError("full"))


def test_a_run_does_not_go_on_without_its_lock():
    with pytest.raises(LostLockError):
        Run(minutes=60).try_to_save(LostLockError("taken"))


def test_sigterm_ends_the_wait_for_the_last_save(monkeypatch):
    run, stops = Run(minutes=60), iter([False, False, True])
    monkeypatch.setattr(saving.time, "sleep", lambda seconds: None)
    run.checkpoints.error = StorageError("full")
    with pytest.raises(StorageError, match="full, .* \\(stopped by SIGTERM\\)"):
        run.saves.finish(lambda: None, lambda: next(stops))
