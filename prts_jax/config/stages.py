"""Configs of the stages of a run: each stage has its steps and its changes to the run's config.

    c.growth.stages = (
        {"steps": 400, "model": {"layers": 2}},
        {"steps": 400, "model": {"layers": 4}, "init": {"growth": {"operator": "last"}}},
        {"steps": 800},
    )

A stage may change any key except `growth` and `train.steps`, which its "steps" replaces: a number,
or the tokens that it trains on, as "1.5B tokens". Keys that it omits have the value of the whole
run, not of the previous stage; those of `init.growth` that its operator does not take are ignored.
A run without stages has one.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any

from prts_jax.config.lengths import parse_length
from prts_jax.config.reading import from_dict, nearest, to_dict
from prts_jax.config.schema import DataConfig, GrowthConfig, RunConfig
from prts_jax.errors import UserError

_FROM_OUTSIDE = ("grow_from", "start_from", "branch_from")


def stage_configs(config: RunConfig) -> tuple[RunConfig, ...]:
    """Returns the config of each stage, at least one, with the stage's steps in `train.steps`.

    `data.tokens_per_step` becomes `data.batch` and `train.accumulation`, and is then 0.

    Raises:
      UserError: a stage has no steps, an unknown key or a value of the wrong type, or its tokens
        per step are not whole micro-batches.
    """
    stages = config.growth.stages
    if not stages:
        return (_accumulating(config),)
    return tuple(_stage_config(config, stage, index) for index, stage in enumerate(stages))


def inherited_growth_keys(config: RunConfig, index: int) -> frozenset[str]:
    """Returns the keys of `init.growth` that a stage leaves to the run; none without stages."""
    if not config.growth.stages:
        return frozenset()
    own = config.growth.stages[index].get("init", {}).get("growth", {})
    return frozenset(field.name for field in dataclasses.fields(GrowthConfig)) - own.keys()


def check_stages(config: RunConfig, check: Callable[[RunConfig], None]) -> None:
    """Runs a check on the config of every stage, or on the config of a run without stages.

    Raises:
      UserError: the error of `check` or `stage_configs`, with the stage's index.
    """
    for index, stage in enumerate(stage_configs(config)):
        try:
            check(stage)
        except UserError as error:
            if not config.growth.stages:
                raise
            raise UserError(f"config.growth.stages[{index}]: {error}") from error


def _stage_config(config: RunConfig, stage: Mapping[str, Any], index: int) -> RunConfig:
    where = f"growth.stages[{index}]"
    changes = {name: values for name, values in stage.items() if name != "steps"}
    _check_names(RunConfig, changes, where)
    if "growth" in changes:
        raise UserError(f"config.{where}.growth: a stage has no stages of its own; leave it out")
    if "steps" in changes.get("train", {}):
        raise UserError(f"config.{where}.train.steps: write 'steps' beside 'train' instead")
    outside = [name for name in _FROM_OUTSIDE if index and changes.get("init", {}).get(name)]
    if outside:
        raise UserError(
            f"config.{where}.init.{outside[0]}: a stage goes on from the one before it; only the "
            "first may start from another checkpoint"
        )
    values = _merged(to_dict(config), changes)
    try:
        merged = _accumulating(from_dict(RunConfig, values))
    except UserError as error:
        raise UserError(f"config.{where}: {error}") from error
    steps = _steps(stage.get("steps"), merged.data, f"{where}.steps")
    return dataclasses.replace(merged, train=dataclasses.replace(merged.train, steps=steps))


def _steps(length: Any, data: DataConfig, key: str) -> int:
    """Returns the steps of a stage, of which the last one reaches the tokens of a text."""
    steps = length
    if isinstance(length, str):
        number, unit = parse_length(length, key)
        per_step = {"steps": 1, "tokens": max(data.batch * data.length, 1)}
        steps = math.ceil(number / per_step[unit]) if unit in per_step else None
    if type(steps) is not int or steps < 1:
        raise UserError(
            f"config.{key}: is {length!r}; give the stage's steps, at least 1, or its tokens, such "
            "as '1.5B tokens'"
        )
    return steps


def _accumulating(config: RunConfig) -> RunConfig:
    """Returns the config with a batch of `data.tokens_per_step`, in parts of `data.batch`."""
    tokens, micro_batch = config.data.tokens_per_step, config.data.batch * config.data.length
    if tokens < 1 or micro_batch < 1 or config.data.length < 1:
        return config  # nothing to derive, or refused by the checks of ranges
    if config.train.accumulation != 1:
        raise UserError(
            "config.data.tokens_per_step: derives train.accumulation, which is set too; keep one"
        )
    count = tokens // micro_batch
    if tokens % micro_batch:
        near = " or ".join(f"{n * micro_batch}" for n in (count, count + 1) if n)
        raise UserError(
            f"config.data.tokens_per_step: {tokens} is no multiple of data.batch × data.length = "
            f"{micro_batch}; give {near}"
        )
    data = dataclasses.replace(config.data, batch=count * config.data.batch, tokens_per_step=0)
    train = dataclasses.replace(config.train, accumulation=count)
    return dataclasses.replace(config, data=data, train=train)


def _check_names(section: type, changes: Any, where: str) -> None:
    """Checks that a section has all changed keys before the changes are merged into it."""
    if not isinstance(changes, Mapping):
        raise UserError(f"config.{where}: is {changes!r}; expected a section with keys")
    hints = typing.get_type_hints(section)
    for name, value in changes.items():
        if name not in hints:
            known = [*hints, "steps"] if section is RunConfig else list(hints)
            raise UserError(f"config.{where}.{name}: no such key; {nearest(name, known)}")
        if dataclasses.is_dataclass(hints[name]):
            _check_names(typing.cast(type, hints[name]), value, f"{where}.{name}")


def _merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for name, change in changes.items():
        nested = isinstance(change, Mapping)
        merged[name] = _merged(values[name], change) if nested else change
    return merged
