"""Every file of configs/growth: it resolves, its growth is what it says, and it runs in small."""

import ast
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.cli import config_flags
from prts_jax.config import RunConfig, from_dict, stage_configs, to_dict
from prts_jax.config import resolve as resolve_config
from prts_jax.growth.operators import OPERATORS, make_map
from prts_jax.train.loop import train
from prts_jax.train.stages import remaining_stages
from tests.conftest import ROOT
from tests.train import tiny

FILES = sorted(ROOT.glob("configs/growth/*.py"))
SPECS = [*map(str, FILES), f"{ROOT}/configs/growth/zero_layer.py:one"]
STAGED = [spec for spec in SPECS if config_flags.load_file(spec).growth.stages]
GROWN = [spec for spec in SPECS if spec not in STAGED]
BASES = {"runs/quickstart/base": "base", "runs/quickstart-long/base": "base,long"}

# These copy layers as stack.py does, by maps that another test makes: stack.py runs for them.
COPIES = {"interpolate", "last", "layers", "middle", "solar"}
RUN = [spec for spec in SPECS if Path(spec).stem not in COPIES]

by_name = {"ids": lambda spec: Path(spec).name}


def base_of(spec: str) -> RunConfig:
    argument = BASES[config_flags.load_file(spec).init.grow_from]
    return config_flags.load_file(f"{ROOT}/configs/quickstart.py:{argument}")


def keeps_the_function(spec: str) -> bool:
    """Whether the file says that its growth does."""
    text = ast.get_docstring(ast.parse(Path(spec.partition(":")[0]).read_text()))
    return text is not None and "function preserving" in text.lower()


def test_every_operator_has_a_config():
    assert set(OPERATORS) == {Path(spec).stem for spec in GROWN}


@pytest.mark.parametrize("spec", GROWN, **by_name)
def test_a_config_grows_the_quickstarts_base_by_the_operator_of_its_name(spec):
    config = config_flags.load_file(spec)
    assert config.init.growth.operator == Path(spec).stem
    growth_map = make_map(base_of(spec).model, config.model, **to_dict(config.init.growth))
    assert growth_map.target.layers == config.model.layers
    assert growth_map.function_preserving() == keeps_the_function(spec)


@pytest.mark.parametrize("spec", STAGED, **by_name)
def test_the_growth_of_every_stage_can_be(spec, tmp_path):
    stages = remaining_stages(config_flags.load_file(spec), None)
    assert len(stages) > 1
    assert stages[-1].config.model.layers == 8


def shrunk(config: RunConfig, stores: Any) -> RunConfig:
    """The same growth with an eighth of the width, for a step or two on other data."""

    def narrow(model: dict[str, Any]) -> None:
        for name in {"embed", "head_dim", "mlp"} & model.keys():
            model[name] //= 8
        model["vocab"] = tiny.MODEL.vocab

    values = to_dict(config)
    narrow(values["model"])
    for stage in values["growth"]["stages"]:
        stage["steps"] = 1
    values["train"]["steps"] = 2
    values["data"] |= {"train": stores.train, "validation": stores.validation}
    values["data"] |= {"batch": 4, "length": 16}
    values["evaluation"] |= {"every_steps": 0, "tokens": 64, "batch": 4}
    values["logging"] |= {"every_steps": 1, "tensorboard": False}
    if config.init.growth.operator == "learned":
        values["init"]["growth"]["learn_steps"] = 2
    return resolve_config(values)


@pytest.fixture(scope="module")
def bases(tmp_path_factory, stores) -> Callable[[str], str]:
    """`bases("runs/quickstart/base")`: the workdir of that base in small; each made once."""
    root = tmp_path_factory.mktemp("bases")

    def make(directory: str) -> str:
        workdir = root / BASES[directory]
        if not workdir.exists():
            file = f"{ROOT}/configs/quickstart.py:{BASES[directory]}"
            train(shrunk(config_flags.load_file(file), stores), str(workdir))
        return str(workdir)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("spec", RUN, **by_name)
def test_a_config_runs_in_small(spec, stores, bases, tmp_path):
    config = config_flags.load_file(spec)
    values = to_dict(shrunk(config, stores))
    if config.init.grow_from:
        values["init"]["grow_from"] = bases(config.init.grow_from)
    small = from_dict(RunConfig, values)
    train(small, str(tmp_path))
    lines = tiny.read_lines(tmp_path)
    growths = [line for line in lines if "growth" in line]
    models = [stage.model for stage in stage_configs(small)]
    grows = sum(a != b for a, b in itertools.pairwise(models))
    assert len(growths) == (grows if small.growth.stages else 1)
    assert read_lineage(resolve(str(tmp_path))).model.layers == small.model.layers
    if keeps_the_function(spec):
        before = tiny.read_lines(Path(bases(config.init.grow_from)))[-1]["validation_loss"]
        assert growths[0]["validation_loss"] == pytest.approx(before, rel=1e-5)
