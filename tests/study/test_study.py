"""`prts study` and `prts report --study` through the command line, on real runs."""

import json

import pytest

from prts_jax import cli
from tests.conftest import ROOT
from tests.train import tiny

FILE = """
from prts_jax import config
from prts_jax.study import arms
from prts_jax.study.design import Study


def get_study(store):
    c = config.inherit("{root}/tests/train/tiny.py", __file__)
    c.data.train = c.data.validation = store
    c.train.steps = 12
    c.evaluation.every_steps, c.evaluation.blocks = 4, 4
    base = arms.base(c, "base", {{"model.layers": 1}}, 0.2)
    stack = arms.grown(c, "stack", base, {{"init.growth.operator": "stack"}})
    return Study("Does it pay?", (base, arms.scratch(c), stack), seeds=(1,))
"""


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main([*arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


@pytest.mark.slow
def test_a_study_trains_its_grid_and_reports_it(tmp_path, capsys):
    store = tiny.write_store(tmp_path / "store").directory
    (tmp_path / "study.py").write_text(FILE.format(root=ROOT))
    command = ["study", f"--config={tmp_path}/study.py:{store}", f"--workdir={tmp_path}/out"]
    assert cli.main([*command, "--jobs=2"]) == 0
    assert "Does it pay?" in capsys.readouterr().out
    assert cli.main(command) == 0  # all is reused
    capsys.readouterr()
    assert cli.main(["report", f"--study={tmp_path}/out", "--json", "--probe=4"]) == 0
    report = json.loads(capsys.readouterr().out)
    base, scratch, stack = report["arms"]
    assert stack["connection_rate"] == 0.0  # one layer twice
    assert len(stack["speedup"]["values"]) == 1
    assert scratch["tokens_per_parameter"] > 0
    assert stack["tokens_per_parameter"] > 0
    assert base["losses"][0] > 0
    lines = tiny.read_lines(tmp_path / "out" / "runs" / "scratch-peak0.003-seed1")
    blocks = [value for key, value in lines[-1].items() if key.startswith("validation_block/")]
    assert len(blocks) == 4


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
