"""The sweep of random faults notices what a run does not survive, and leaves it a checkpoint."""

import json
import math
import multiprocessing
import random
import time

import numpy as np
import pytest

from benchmarks import fault_kinds, fault_runs, faults
from benchmarks.fault_kinds import OneHost, SeveralHosts


@pytest.fixture
def tally() -> faults.Tally:
    return faults.Tally(0)


@pytest.fixture
def disturb(tmp_path, monkeypatch, tally):
    """Returns a function that disturbs processes which run a function."""

    def run(kind: str, count: int, function, *arguments) -> None:
        def start(folder, workdir, name, hosts=1, devices=1):
            processes, logs = [], [folder / f"{host}.log" for host in range(hosts)]
            for log in logs:
                log.write_text("2 processes have joined\n" + "step  loss 1\n" * 60)
                process = multiprocessing.get_context("fork").Process(
                    target=function, args=arguments
                )
                process.start()
                processes.append(process)
            return fault_runs.Job(processes, logs)

        (tmp_path / "run/checkpoints").mkdir(parents=True, exist_ok=True)
        monkeypatch.setattr(fault_kinds, "start", start)
        monkeypatch.setattr(faults, "moment", lambda job, numbers: job.alive)
        numbers = random.Random(0)
        place = SeveralHosts if kind == "killed host" else OneHost
        place = place(tmp_path, numbers)
        place.kinds, place.shapes = [kind], ((2, 1),)
        sweep = faults.Sweep(tmp_path, tally, count, math.inf)
        sweep.disturb(place, str(tmp_path / "run"), "run", numbers)

    return run


@pytest.mark.parametrize("code", [1, 2, 75])
def test_a_run_that_ends_by_itself_has_failed(disturb, code):
    with pytest.raises(fault_runs.Failure, match=rf"exit codes? \[?{code}\]?: step  loss"):
        disturb("SIGKILL", 3, exit, code)


def end_late(code: int) -> None:
    time.sleep(1)
    raise SystemExit(code)


@pytest.mark.parametrize(
    ("kind", "code", "counted"),
    [("full disk", 75, {}), ("full disk for good", 1, {}), ("full disk for good", 75, {1})],
)
def test_only_a_disk_that_stays_full_may_end_a_run_that_trains(
    disturb, monkeypatch, tally, kind, code, counted
):
    monkeypatch.setattr(fault_kinds, "_fill", lambda folder, job, seconds: job.codes())
    with pytest.raises(fault_runs.Failure, match=rf"exit codes? \[?{code}\]?: step  loss"):
        disturb(kind, 1, end_late, code)  # the start after a fault that is allowed ends so too
    assert set(tally.faults.values()) == set(counted)


def test_faults_are_drawn_from_the_wanted_kinds(tmp_path):
    numbers = random.Random(0)
    assert OneHost(tmp_path, numbers, ["empty", "killed host"]).kinds == ["empty"]
    hosts = {hosts for hosts, _ in SeveralHosts(tmp_path, numbers, ["changed devices"]).shapes}
    assert hosts == {1}


def test_a_process_that_hangs_has_failed(disturb, monkeypatch):
    monkeypatch.setattr(fault_runs, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(fault_runs.Failure, match="hangs"):
        disturb("SIGKILL", 0, time.sleep, 60)


def test_a_host_that_outlives_another_has_failed(disturb, monkeypatch):
    monkeypatch.setattr(fault_kinds, "BOUNDED_SECONDS", 0.5)
    with pytest.raises(fault_runs.Failure, match="hangs"):
        disturb("killed host", 3, time.sleep, 60)


@pytest.mark.parametrize(("saved", "kind"), [([5], "SIGKILL"), ([5, 10], "delete")])
def test_the_last_intact_checkpoint_is_not_damaged(
    disturb, monkeypatch, tmp_path, tally, saved, kind
):
    file = tmp_path / "run/checkpoints/10/file"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(fault_kinds, "complete_steps", lambda folder: saved)
    monkeypatch.setattr(fault_runs, "PATIENCE_SECONDS", 0.5)
    with pytest.raises(fault_runs.Failure, match="hangs"):  # the start after the fault
        disturb("delete", 1, time.sleep, 60)
    assert tally.faults == {kind: 1}
    assert file.exists() == (kind == "SIGKILL")


def test_the_next_sitting_goes_on_with_the_tally(tmp_path):
    out = tmp_path / "faults.json"
    tally = faults.Tally(3, {"SIGKILL": 2}, ["run-0 …"], runs={"one host": 1})
    faults.write_tally(out, tally)
    assert faults.read_tally(out, 3) == tally
    assert faults.read_tally(tmp_path / "none", 3) == faults.Tally(3)
    with pytest.raises(SystemExit, match="is of seed 3; give --seed=3"):
        faults.read_tally(out, 4)
    assert json.loads(out.read_text())["faults"] == {"SIGKILL": 2}


def ends(loss: float = 1.0, position: int = 8, param: float = 2.0, step: int = 80) -> dict:
    return {
        "totals": (step, position, 1, 1.0),
        "maps": [],
        "done": True,
        "lines": [{"step": 1, "position": position, "loss": loss}],
        "digests": ({}, {}),
        "params": {"a": np.array([param, -4.0])},
    }


def test_ends_differ_in_nothing_or_by_rounding_or_not_at_all_alike():
    assert fault_runs.difference(ends(), ends()) == 0.0
    assert fault_runs.difference(ends(loss=1.01), ends()) == pytest.approx(0.01)
    assert fault_runs.difference(ends(param=2.4), ends()) == pytest.approx(0.1)
    with pytest.raises(fault_runs.Failure, match="totals"):
        fault_runs.difference(ends(step=79), ends())
    with pytest.raises(fault_runs.Failure, match="totals"):
        fault_runs.difference(ends(position=16), ends())
