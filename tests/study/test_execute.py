"""A grid runs in order of what it needs, reuses what is finished and goes on after a stop."""

import json
import os
import signal
import threading
import time

import pytest

from prts_jax.errors import Interrupted, UserError
from prts_jax.local_lock import local_lock
from prts_jax.study import compare, pages, results
from prts_jax.study import execute as executing
from prts_jax.study.design import Cell, check, ready
from tests.study import synthetic_study as synthetic


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    """Replaces `prts train` by a script that writes what it would."""
    start = synthetic.fake_trainer(tmp_path)
    real = executing.command
    monkeypatch.setattr(executing, "command", lambda *args: [*start, *real(*args)[3:]])
    monkeypatch.setattr(executing, "POLL_SECONDS", 0.01)


def run(folder, study=None, say=lambda line: None):
    return executing.execute(study or synthetic.study(), str(folder), 2, say)


def test_all_runs_train_and_the_best_rate_of_the_first_seed_is_the_rate_of_the_others(
    trainer, tmp_path
):
    lines: list[str] = []
    losses = run(tmp_path / "s", say=lines.append)
    assert set(losses) == {
        *(f"shallow-peak0.001-seed{k}" for k in range(3)),
        "scratch-peak0.0005-seed0",
        *(f"scratch-peak0.001-seed{k}" for k in range(3)),
        *(f"stack-peak0.001-seed{k}" for k in range(3)),
        *(f"zero-peak0.001-seed{k}" for k in range(3)),
    }
    grown = json.loads((tmp_path / "s/configs/stack-peak0.001-seed2.json").read_text())
    assert grown["init"]["grow_from"] == str(tmp_path / "s/runs/shallow-peak0.001-seed2")
    assert grown["data"]["seed"] == grown["init"]["seed"] == 2
    assert grown["init"]["growth"]["seed"] == 0  # stacking draws nothing
    assert "(13 of 13 runs done)" in lines[-1]


def test_finished_runs_are_reused(trainer, tmp_path, monkeypatch):
    losses = run(tmp_path / "s")
    monkeypatch.setattr(executing, "command", lambda *args: pytest.fail("trains again"))
    assert run(tmp_path / "s") == losses


def test_more_seeds_add_only_their_own_runs(trainer, tmp_path):
    run(tmp_path / "s", synthetic.study(seeds=(0, 1)))
    lines: list[str] = []
    run(tmp_path / "s", synthetic.study(seeds=(0, 1, 2)), lines.append)
    started = [line for line in lines if "starts" in line]
    assert len(started) == 4
    assert all("seed2" in line for line in started)


def test_a_study_that_changed_is_refused_by_the_name_of_the_run(trainer, tmp_path):
    run(tmp_path / "s")
    synthetic.damage(tmp_path / "s/configs/zero-peak0.001-seed1.json")
    with pytest.raises(UserError, match=r"zero-peak0.001-seed1.json: the study says something"):
        run(tmp_path / "s")


@pytest.mark.parametrize(
    ("code", "line", "error"),
    [
        (75, "prts train: stopped by SIGTERM at step 3 and saved", Interrupted),
        (75, "prts train: disk full", Interrupted),
        (2, "prts train: no finished token store", UserError),
        (1, "prts train: internal error", UserError),
    ],
)
def test_a_run_that_fails_ends_the_study_with_its_last_line_and_the_next_call_goes_on(
    trainer, tmp_path, monkeypatch, code, line, error
):
    for name, value in (("FAIL", "stack-peak0.001-seed1"), ("CODE", str(code))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LAST_LINE", line)
    with pytest.raises(error, match=line):
        run(tmp_path / "s")
    assert len(run(tmp_path / "s")) == 13


def test_a_rate_that_diverges_is_not_chosen(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "scratch-peak0.001-seed0")
    monkeypatch.setenv("CODE", "2")
    monkeypatch.setenv("LAST_LINE", "prts train: loss: is nan at step 3: training has diverged")
    losses = run(tmp_path / "s")
    assert losses["scratch-peak0.001-seed0"] == float("inf")
    assert "scratch-peak0.0005-seed2" in losses


def test_sigterm_stops_the_runs_and_the_next_call_goes_on(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("SLOW", "1")

    def terminate() -> None:
        while not list((tmp_path / "s/logs").glob("*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    with pytest.raises(Interrupted, match="the same command goes on"):
        run(tmp_path / "s")
    monkeypatch.delenv("SLOW")
    assert len(run(tmp_path / "s")) == 13


def test_other_seeds_wait_for_the_sweep_and_growth_waits_for_its_base():
    study = synthetic.study()
    assert [cell.name for cell in ready(study, {})] == [
        "shallow-peak0.001-seed0",
        "scratch-peak0.0005-seed0",
        "scratch-peak0.001-seed0",
    ]
    names = [cell.name for cell in ready(study, {"shallow-peak0.001-seed0": 3.0})]
    assert "stack-peak0.001-seed0" in names
    assert "shallow-peak0.001-seed1" in names
    assert "stack-peak0.001-seed1" not in names


def test_base_and_grown_run_spend_the_flops_of_scratch():
    study = synthetic.study(steps=1000)
    flops = {arm.name: Cell(arm, 1e-3, 0).flops() for arm in study.arms}
    assert flops["shallow"] + flops["stack"] == pytest.approx(flops["scratch"], rel=2e-3)
    assert flops["shallow"] == pytest.approx(0.1 * flops["scratch"], rel=5e-3)


def test_a_study_without_scratch_or_with_an_unknown_base_is_refused():
    study = synthetic.study()
    type_of = type(study)
    with pytest.raises(UserError, match="no scratch arm"):
        check(type_of("t", (study.arms[0],)))
    with pytest.raises(UserError, match="its base 'shallow' is no arm before it"):
        check(type_of("t", (study.arms[2], study.arms[1])))


def test_the_report_has_the_known_speedup_with_an_interval(trainer, tmp_path):
    """A grown run of the fake trainer needs half the FLOPs of scratch."""
    run(tmp_path / "s")
    read = results.read(str(tmp_path / "s"))
    by_arm = compare.speedups(read)
    booked = by_arm["stack"].booked
    assert booked.mean == pytest.approx(1.0, abs=0.02)
    assert booked.low == pytest.approx(1.0, abs=0.05)
    assert booked.high == pytest.approx(1.0, abs=0.05)
    page, pngs = pages.render_page(read, by_arm)
    assert [*pngs] == ["loss_over_flops.png", "speedups.png", "growth.png"]
    assert "Kendall" in page
    assert page.count("<img") == 3
    assert "+100" in pages.text(read, by_arm) or "+99" in pages.text(read, by_arm)


def test_a_seed_that_diverges_has_no_speedup_and_is_named(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "stack-peak0.001-seed1")
    monkeypatch.setenv("CODE", "1")
    monkeypatch.setenv("LAST_LINE", "prts train: loss: is nan at step 3: training has diverged")
    run(tmp_path / "s")
    read = results.read(str(tmp_path / "s"))
    by_arm = compare.speedups(read)
    assert by_arm["stack"].booked.missing == 1
    assert by_arm["zero"].booked.missing == 0
    text = pages.text(read, by_arm)
    assert "not reached in 1 of 3 seeds" in text
    assert "Seeds that diverged, at the best rate that was tried: stack 1." in text


def test_a_study_that_was_stopped_is_reported_as_far_as_it_has_run(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "zero-peak0.001-seed0")
    monkeypatch.setenv("CODE", "75")
    monkeypatch.setenv("LAST_LINE", "prts train: stopped by SIGTERM at step 3 and saved")
    with pytest.raises(Interrupted):
        run(tmp_path / "s")
    read = results.read(str(tmp_path / "s"))
    text = pages.text(read, compare.speedups(read))
    assert "Runs that are missing: " in text
    assert "zero 3" in text


def test_a_base_that_diverges_at_every_rate_ends_the_study(trainer, tmp_path, monkeypatch):
    monkeypatch.setenv("FAIL", "shallow-peak0.001-seed0")
    monkeypatch.setenv("CODE", "1")
    monkeypatch.setenv("LAST_LINE", "prts train: loss: is nan at step 3: training has diverged")
    with pytest.raises(UserError, match="shallow-peak0.001-seed0 diverged; give shallow lower"):
        run(tmp_path / "s")


def test_a_folder_in_use_is_refused(trainer, tmp_path):
    with local_lock(tmp_path / "s"), pytest.raises(UserError, match=f"process {os.getpid()} is"):
        run(tmp_path / "s")
