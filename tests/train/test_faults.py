"""The sweep of random faults notices what a run does not survive, and leaves it a checkpoint."""

import math
import multiprocessing
import random
import time
from pathlib import Path

import pytest

from benchmarks import faults


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Returns a sweep of one kind of fault over processes that run a function."""

    def make(kind: str, count: int, function, *arguments) -> faults.Sweep:
        def start(folder: Path, workdir: Path, log: Path):
            log.write_text("starts\n" + "step  loss 1\n" * 60)
            (workdir / "checkpoints").mkdir(parents=True, exist_ok=True)
            process = multiprocessing.get_context("fork").Process(target=function, args=arguments)
            process.start()
            return process

        monkeypatch.setattr(faults, "start", start)
        monkeypatch.setattr(faults, "STARTING_SECONDS", 0.1)
        return faults.Sweep(tmp_path, random.Random(0), (kind,), count, math.inf)

    return make


@pytest.mark.parametrize("code", [1, 2, 75])
def test_a_run_that_ends_by_itself_has_failed(sweep, code):
    with pytest.raises(faults.Failure, match=f"exit code {code}: step  loss 1"):
        sweep("SIGKILL", 3, exit, code).disturbed("run")


def test_a_process_that_hangs_has_failed(sweep, monkeypatch):
    monkeypatch.setattr(faults, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(faults.Failure, match="hangs"):
        sweep("SIGKILL", 0, time.sleep, 60).disturbed("run")


@pytest.mark.parametrize(("saved", "kinds"), [([5], ["SIGKILL"]), ([5, 10], ["delete"])])
def test_the_last_intact_checkpoint_is_not_damaged(sweep, monkeypatch, tmp_path, saved, kinds):
    file = tmp_path / "run/checkpoints/10/file"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(faults, "complete_steps", lambda folder: saved)
    monkeypatch.setattr(faults, "PATIENCE_SECONDS", 0.5)
    swept = sweep("delete", 1, time.sleep, 60)
    with pytest.raises(faults.Failure):
        swept.disturbed("run")
    assert list(swept.tally) == kinds
    assert file.exists() == (kinds == ["SIGKILL"])
