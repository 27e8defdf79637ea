"""Metrics on Weights & Biases, with a module that stands for the package `wandb`."""

import json
import sys
import types

import pytest

from prts_jax.errors import UserError
from tests.train import tiny


class Wandb(types.ModuleType):
    """Keeps what a run sends: the arguments of each `init`, numbers by step and id."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")
        self.starts: list[dict] = []
        self.sent: dict[str, dict[int, dict]] = {}
        self.finished = 0

    def init(self, **arguments):
        self.starts.append(arguments)
        self.steps = self.sent.setdefault(arguments["id"], {})
        return self

    def log(self, numbers: dict, step: int) -> None:
        assert all(isinstance(value, int | float) for value in numbers.values())
        if step >= max(self.steps, default=0):
            self.steps.setdefault(step, {}).update(numbers)

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_every_start_continues_the_same_run(run, tmp_path, wandb):
    run(tmp_path / "a", logging__wandb="growth", train__steps=4)
    lines = run(tmp_path / "a", logging__wandb="growth", train__steps=6)
    first, second = wandb.starts
    assert first["project"] == second["project"] == "growth"
    assert first["id"] == second["id"] == json.loads((tmp_path / "a/wandb.json").read_text())["id"]
    assert (first["name"], first["resume"], first["config"]["train"]["steps"]) == ("a", "allow", 4)
    [steps] = wandb.sent.values()
    assert sorted(steps) == [line["step"] for line in lines]
    assert [steps[n]["loss"] for n in range(1, 7)] == [line["loss"] for line in lines[1:]]
    assert wandb.finished == 2
    run(tmp_path / "b", logging__wandb="growth", train__steps=2)
    assert len(wandb.sent) == 2


def test_a_failing_service_does_not_end_the_run(run, tmp_path, wandb, monkeypatch, capfd):
    def fail(numbers, step):
        raise ConnectionError("the service is away")

    monkeypatch.setattr(wandb, "log", fail)
    lines = run(tmp_path / "a", logging__wandb="growth", train__steps=2)
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert "wandb: step 2 is lost: the service is away" in capfd.readouterr().err


def test_a_missing_login_is_one_line(run, tmp_path, wandb, monkeypatch):
    def refuse(**arguments):
        raise RuntimeError("api_key not configured (no-tty)\nmore")

    monkeypatch.setattr(wandb, "init", refuse)
    with pytest.raises(UserError, match=r"refuses project 'growth' \(api_key .*\); run `wandb"):
        run(tmp_path / "a", logging__wandb="growth")


def test_without_the_package_the_run_does_not_start(run, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"config.logging.wandb: is 'growth' and the package"):
        run(tmp_path / "a", logging__wandb="growth")
    assert list(tmp_path.iterdir()) == []
    tiny.run_config(logging__wandb="")
