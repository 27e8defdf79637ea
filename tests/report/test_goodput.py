"""Wall time of runs in the report: shares, starts, and metrics that lack them."""

import json
from pathlib import Path

import pytest

from prts_jax import cli
from prts_jax.report.goodput import goodput
from tests.report.synthetic import power_law, read_runs, write_run


def restarted(folder: Path, **first: float) -> Path:
    """Writes a run that started at time 1000, was killed, and started again 100 s later."""
    run = write_run(folder, power_law(8.0, 2.5, 1e10), steps=30)
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    times = [(1010, 0, 10, 4, 0, 0), (1040, 20, 10, 4, 2, 4), (1060, 36, 10, 4, 4, 6)]
    times.append((1200, 70, 16, 8, 6, 10))
    names = ("time", "step_seconds", "starting_seconds", "compiling_seconds")
    names += ("evaluation_seconds", "saving_seconds")
    for line, values in zip(lines, times, strict=True):
        line |= dict(zip(names, values, strict=True)) | {"started": 1000.0}
    lines[1]["first_step_seconds"], lines[3]["first_step_seconds"] = 15.0, 11.0
    lines[0] |= first
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return run


def test_shares_of_the_wall_time_and_each_start_are_shown_over_restarts(tmp_path, capsys):
    run = restarted(tmp_path / "run")
    assert cli.main(["report", str(run), f"--out={tmp_path}"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "run 3 min 20 s 35.0% 8.0% 4.0% 3.0% 5.0% 45.0% 2 13 s 15 s" in text
    assert "run 10 15 s run 30 11 s" in text
    assert "45.0%" in (tmp_path / "report.html").read_text()


def test_json_has_all_figures_in_seconds(tmp_path, capsys):
    assert cli.main(["report", str(restarted(tmp_path / "run")), "--json"]) == 0
    [run] = json.loads(capsys.readouterr().out)["runs"]
    assert run["goodput"] == {
        "share": 0.35,
        "wall_seconds": 200.0,
        "step_seconds": 70,
        "starting_seconds": 16,
        "compiling_seconds": 8,
        "evaluation_seconds": 6,
        "saving_seconds": 10,
        "other_seconds": 90.0,
        "starts": [{"step": 10, "seconds": 15.0}, {"step": 30, "seconds": 11.0}],
    }


@pytest.mark.parametrize("started", [None, "yesterday", float("inf"), 5000.0])
def test_metrics_without_a_usable_start_have_no_goodput(tmp_path, started):
    [run] = read_runs([str(restarted(tmp_path / "run", started=started))])
    assert goodput(run) is None


def test_metrics_of_an_older_version_have_the_share_of_steps_alone(tmp_path, capsys):
    run = write_run(tmp_path / "run", power_law(8.0, 2.5, 1e10), steps=10)
    file = run / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0] |= {"seconds": 10.0, "time": 1010.0}
    lines[1] |= {"time": 1100.0, "step_seconds": 25.0}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["report", str(run)]) == 0
    assert "run 1 min 40 s 25.0% – – – – – 0 – –" in " ".join(capsys.readouterr().out.split())


def test_a_run_without_times_has_no_table_of_wall_time(tmp_path, capsys):
    run = write_run(tmp_path / "run", power_law(8.0, 2.5, 1e10), steps=10)
    assert cli.main(["report", str(run)]) == 0
    assert "Wall time" not in capsys.readouterr().out
