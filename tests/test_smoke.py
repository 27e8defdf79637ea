"""The whole job in small, through the public commands: the other supported Python runs this."""

import json

import pytest

from prts_jax import cli
from tests.conftest import ROOT
from tests.train import tiny


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_a_run_trains_resumes_and_grows(tmp_path, capsys):
    store = tiny.write_store(tmp_path / "store").directory
    base, grown, target = (str(tmp_path / name) for name in ("base", "grown", "target"))

    def train(workdir: str, *flags: str) -> None:
        data = [f"--config.data.{split}={store}" for split in ("train", "validation")]
        run = ["train", "--config=tests/train/tiny.py", *data, f"--workdir={workdir}"]
        assert cli.main([*run, *flags]) == 0

    train(base, "--config.train.steps=2")
    train(base, "--config.train.steps=4")
    assert [line["step"] for line in tiny.read_lines(tmp_path / "base")] == [0, 1, 2, 3, 4]

    train(grown, f"--config.init.grow_from={base}", "--config.model.layers=4")
    assert tiny.read_lines(tmp_path / "grown")[-1]["loss"] > 0

    command = ["grow", f"--source={base}", f"--target={target}", "--operator=split"]
    assert cli.main([*command, "--widths=mlp=96", "--verify"]) == 0
    capsys.readouterr()
    assert cli.main(["inspect", target, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["config"]["model"]["mlp"] == 96

    out = str(tmp_path / "report")
    assert cli.main(["report", base, grown, f"--out={out}"]) == 0
