"""`prts study` and `prts report --study` through the command line, on real runs."""

import json

import pytest

from prts_jax import cli
from tests.conftest import ROOT
from tests.train import tiny


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([*arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_a_shipped_study_trains_its_grid_and_reports_it(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["data", "cache", "--task=shakespeare", "--output=runs/shakespeare"]) == 0
    command = ["study", f"--config={ROOT}/configs/study/operators.py:smoke", "--workdir=out"]
    assert cli.main([*command, "--jobs=2"]) == 0
    assert "Which operator grows a model best" in capsys.readouterr().out
    assert cli.main(command) == 0  # all is reused
    capsys.readouterr()
    assert cli.main(["report", "--study=out", "--json", "--probe=10"]) == 0
    report = json.loads(capsys.readouterr().out)
    shallow, scratch, stack, zero = report["arms"]
    assert (stack["connection_rate"], zero["connection_rate"]) == (
        0.0,
        0.0,
    )  # of one layer
    assert len(stack["speedup"]["values"]) == 2
    assert shallow["tokens_per_parameter"] < scratch["tokens_per_parameter"]
    assert scratch["tokens_per_parameter"] < stack["tokens_per_parameter"]
    assert shallow["losses"][0] > scratch["losses"][0]
    lines = tiny.read_lines(tmp_path / "out" / "runs" / "scratch-peak0.004-seed1")
    blocks = [value for key, value in lines[-1].items() if key.startswith("validation_block/")]
    assert len(blocks) == 16


def test_odd_arguments_are_one_line(tmp_path, capsys):
    (tmp_path / "none.py").write_text("")
    (tmp_path / "wrong.py").write_text("def get_study():\n    return 1\n")
    assert "no such file" in refusal(capsys, "study", f"--config={tmp_path}/x.py").lower()
    assert "no function get_study" in refusal(capsys, "study", f"--config={tmp_path}/none.py")
    assert "returns no" in refusal(capsys, "study", f"--config={tmp_path}/wrong.py")
    shipped = f"--config={ROOT}/configs/study/timing.py:smoke"
    assert "--workdir: is missing" in refusal(capsys, "study", shipped)
    assert "give a local folder" in refusal(capsys, "study", shipped, "--workdir=gs://b/x")
    assert "at least 1" in refusal(capsys, "study", shipped, "--jobs=0", "--workdir=x")
    assert "size 'huge'" in refusal(capsys, "study", shipped.replace("smoke", "huge"))
    assert "study.json" in refusal(capsys, "report", f"--study={tmp_path}")
    (tmp_path / "study.json").write_text('{"arms": 3}')
    assert "study.json" in refusal(capsys, "report", f"--study={tmp_path}")
    assert "name runs" in refusal(capsys, "report")


def test_the_grid_is_printed_without_training(tmp_path, capsys):
    shipped = f"--config={ROOT}/configs/study/schedules.py:cpu"
    assert cli.main(["study", shipped, "--dry_run"]) == 0
    printed = capsys.readouterr().out
    assert "28 runs" in printed
    assert "scratch@0.6" in printed
