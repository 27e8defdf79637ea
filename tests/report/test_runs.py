import dataclasses
import json
import math
import os

import pytest

from prts_jax.errors import UserError
from prts_jax.report import figures, html, table
from prts_jax.report.comparison import as_json, compare
from prts_jax.report.runs import _usual_pause, read_run, read_seeds, split_label
from tests.report.synthetic import power_law, read_runs, write_run, write_staged

LOSS = power_law(8.0, 2.5, 1e10)


def test_a_finished_run_is_read_completely(tmp_path):
    workdir = write_run(tmp_path / "scratch", LOSS, steps=200)
    run = read_run(str(workdir), "scratch")
    assert run.state == "finished"
    assert run.shape() == "12L128H"
    assert run.last("step") == 200
    assert run.last("validation_loss") == LOSS(200 * 1e9)
    assert run.tokens_per_second() == pytest.approx(1e4)
    x, y = run.curve("flops", "validation_loss")
    assert x.tolist() == [0, 1e11, 2e11]
    assert y.tolist() == [LOSS(0), LOSS(1e11), LOSS(2e11)]


def test_both_losses_at_a_stage_boundary_are_kept(tmp_path):
    run = read_run(str(write_staged(tmp_path)), "staged")
    flops, losses = run.curve("flops", "validation_loss")
    assert list(flops).count(5e10) == 2  # the end of the first stage and what grew from it
    before, after = losses[flops == 5e10]
    assert (before, after) == (power_law(8.0, 2.7, 1e10)(5e10), 6.0)
    assert [row["step"] for row in run.growths_on_the_way()] == [500, 1000]
    assert run.inherited("flops") == 0


def test_progress_counts_all_stages(tmp_path):
    run = read_run(str(write_staged(tmp_path)), "staged")
    assert run.progress() == 1.0
    begun = dataclasses.replace(run, rows=[row for row in run.rows if row["step"] <= 750])
    assert begun.progress() == 0.5


def test_an_incomplete_last_line_is_ignored(tmp_path):
    workdir = write_run(tmp_path / "going", LOSS, steps=100, done=False)
    metrics = workdir / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 110, "los')
    assert read_run(str(workdir), "going").last("step") == 100


def test_a_run_without_recent_output_is_stopped(tmp_path):
    workdir = write_run(tmp_path / "run", LOSS, steps=100, done=False, train__steps=400)
    for name in ("config.json", "metrics.jsonl"):
        os.utime(workdir / name, (1000, 1000))
    assert read_run(str(workdir), "run", now=1290).state == "running"
    assert read_run(str(workdir), "run", now=1310).state == "stopped"
    assert read_run(str(workdir), "run", now=1310).progress() == 0.25


def test_a_slow_run_may_pause_for_longer(tmp_path):
    slow = write_run(tmp_path / "slow", LOSS, steps=100, done=False, flops_per_token=2e8)
    for name in ("config.json", "metrics.jsonl"):
        os.utime(slow / name, (1000, 1000))
    # A line every 10 steps of 20 s.
    assert read_run(str(slow), "slow", now=1590).state == "running"
    assert read_run(str(slow), "slow", now=1610).state == "stopped"


def test_a_run_without_metrics_is_read(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model": {"layers": 2, "embed": 64}}))
    run = read_run(str(tmp_path), "new")
    assert (run.rows, run.state, run.shape()) == ([], "running", "2L64H")


def test_a_fresh_run_inherits_nothing(tmp_path):
    run = read_run(str(write_run(tmp_path / "scratch", LOSS, steps=100)), "scratch")
    assert run.inherited("flops") == 0
    assert not run.grew()


def test_a_run_without_a_line_at_its_start_inherits_nothing(tmp_path):
    workdir = write_run(tmp_path / "scratch", LOSS, steps=100)
    lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (workdir / "metrics.jsonl").write_text("".join(lines[1:]))
    assert read_run(str(workdir), "scratch").inherited("flops") == 0


def test_a_run_that_started_from_a_grown_checkpoint_grew(tmp_path):
    start = {"tokens": 5000, "flops": 3e11, "flops_6nd": 2e11}
    run = read_run(str(write_run(tmp_path / "grown", LOSS, steps=100, start=start)), "grown")
    assert run.inherited("flops") == 3e11
    assert run.grew()


def test_continuing_from_a_checkpoint_is_no_growth(tmp_path):
    start = {"tokens": 5000, "flops": 3e11, "flops_6nd": 2e11}
    workdir = write_run(tmp_path / "longer", LOSS, steps=100, start=start)
    metrics = (workdir / "metrics.jsonl").read_text()
    (workdir / "metrics.jsonl").write_text(metrics.replace('"growth"', '"else"'))
    run = read_run(str(workdir), "longer")
    assert run.inherited("flops") == 3e11
    assert not run.grew()


def test_a_label_can_be_given_with_the_directory(tmp_path):
    workdir = write_run(tmp_path / "run", LOSS, steps=100)
    runs = read_runs([f"four times={workdir}", str(workdir)])
    assert [run.label for run in runs] == ["four times", "run"]


def test_a_directory_with_an_equals_sign_in_its_name_is_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "peak=1e-3", LOSS, steps=100)
    assert split_label("peak=1e-3") == ("peak=1e-3", "peak=1e-3")
    assert split_label("runs/peak=1e-3") == ("peak=1e-3", "runs/peak=1e-3")


def test_two_runs_of_one_label_are_refused(tmp_path):
    first, second = (write_run(tmp_path / a / "run", LOSS, steps=100) for a in "ab")
    with pytest.raises(UserError, match="another run has the label 'run', too; give one"):
        read_runs([str(first), str(second)])


def test_a_missing_workdir_is_refused(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such directory; name the workdir"):
        read_run(str(tmp_path / "nowhere"), "nowhere")


def test_a_directory_that_is_no_workdir_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"neither config\.json nor metrics"):
        read_run(str(tmp_path), "folder")


def test_damaged_metrics_are_refused(tmp_path):
    workdir = write_run(tmp_path / "run", LOSS, steps=100)
    metrics = workdir / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join([lines[0], "\x00\x00\n", *lines[1:]]))
    with pytest.raises(UserError, match="damaged line"):
        read_run(str(workdir), "run")


@pytest.mark.parametrize("damaged", ["{", "[]"])
def test_a_damaged_config_is_named(tmp_path, damaged):
    workdir = write_run(tmp_path / "run", LOSS, steps=100)
    (workdir / "config.json").write_text(damaged)
    with pytest.raises(UserError, match=r"config\.json: is no JSON"):
        read_run(str(workdir), "run")


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
def test_a_directory_instead_of_a_file_is_refused(tmp_path, name):
    workdir = write_run(tmp_path / "run", LOSS, steps=100)
    (workdir / name).unlink()
    (workdir / name).mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        read_run(str(workdir), "run")


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({}, {"tokens": "many", "flops": None, "growth": 3, "previous_stage": [], "stage": {}}),
        ({}, {"tokens": 10**400, "flops": math.inf, "seconds": math.nan, "stage_step": -math.inf}),
        ({}, {"growth": {"map": 7}, "previous_stage": {"step": 1}, "validation_loss": True}),
        ({}, {"growth": {"map": {"source": 1}}, "previous_stage": {"step": 1, "flops": "x"}}),
        ({"model": 3, "train": [], "init": None, "growth": {"stages": [1]}}, {"stage_step": 1}),
        ({"model": {"layers": {}, "embed": "\x1b[31m"}, "train": {"steps": "x"}}, {}),
        ({"train": {"steps": 0}, "checkpoint": 1, "schedule": {"kind": []}}, {"stage_step": 2}),
    ],
)
def test_values_of_wrong_types_are_left_out(tmp_path, config, line):
    workdir = write_run(tmp_path / "run", LOSS, steps=200, done=False)
    known = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(known | config))
    with (workdir / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"step": 300} | line) + "\n")
    [runs] = read_seeds([str(workdir)])
    comparison = compare(runs)
    assert html.render([comparison], figures.draw_all(comparison))
    assert json.dumps(as_json(comparison), allow_nan=False)
    [row] = table.run_table(comparison).rows
    assert "\x1b" not in "".join(row)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "[" * 100_000),
        ("metrics.jsonl", "[" * 100_000 + "\n"),
        ("metrics.jsonl", '{"step": "one"}\n'),
        ("metrics.jsonl", '{"step": NaN}\n'),
        ("metrics.jsonl", '{"step": {}}\n'),
        ("metrics.jsonl", "\x00\n"),
    ],
)
def test_damaged_files_are_refused(tmp_path, file, content):
    workdir = write_run(tmp_path / "run", LOSS, steps=100)
    (workdir / file).write_text(content)
    with pytest.raises(UserError, match=r"run.*(fix or remove it|remove it)$"):
        read_seeds([str(workdir)])


def test_on_object_storage_the_usual_pause_is_a_checkpoint_interval(tmp_path):
    run = read_run(str(write_run(tmp_path / "run", LOSS, steps=100)), "run")
    # 10 s for 100 steps, and segments are written every 1,000.
    assert _usual_pause(run, remote=True) == pytest.approx(100)
    short = dataclasses.replace(run, rows=run.rows[:1])
    assert _usual_pause(short, remote=True) == math.inf
