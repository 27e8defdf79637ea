"""The configuration of a run: resolves ml_collections files into frozen, typed dataclasses.

`schema` is the only list of keys and defaults. A config file takes `default_config()`, changes keys
and returns it. `resolve` turns the result into a `RunConfig`, or raises a one-line error that names
the wrong key.
"""

import importlib.metadata
from collections.abc import Mapping
from typing import Any

import ml_collections

from prts_jax.config.checks import (
    MAX_LAYERS,
    check_combinations,
    check_model,
    check_numbers,
    check_schedule,
)
from prts_jax.config.files import inherit
from prts_jax.config.lengths import parse_length
from prts_jax.config.reading import from_dict, get, model_differences, nearest, to_dict
from prts_jax.config.schema import (
    CHOICES,
    CheckpointConfig,
    ComputeConfig,
    DataConfig,
    DistillationConfig,
    EvaluationConfig,
    GrowthConfig,
    InitConfig,
    LoggingConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RopeScaling,
    RunConfig,
    ScalingConfig,
    ScheduleConfig,
    StageChanges,
    StagesConfig,
    TrainConfig,
)
from prts_jax.config.stages import check_stages, inherited_growth_keys, stage_configs
from prts_jax.errors import UserError

OPERATOR_GROUP = "prts_jax.growth_operators"
"""Entry point group of third-party growth operators."""


def third_party_operators() -> dict[str, importlib.metadata.EntryPoint]:
    """Returns installed third-party growth operators, name → entry point, without loading them."""
    return {point.name: point for point in importlib.metadata.entry_points(group=OPERATOR_GROUP)}


def default_config() -> ml_collections.ConfigDict:
    """Returns all keys with their defaults, for a config file to change.

    The result is locked: setting an unknown key or a value of another type raises an error at that
    line of the config file.
    """
    return ml_collections.ConfigDict(to_dict(RunConfig())).lock()


def resolve(values: Mapping[str, Any]) -> RunConfig:
    """Turns a config file's ConfigDict into a checked `RunConfig`.

    Raises:
      UserError: an unknown key, a wrong type, a value outside its choices, or an invalid
        combination.
    """
    config = from_dict(RunConfig, values)
    check_stages(config, _check)
    return config


def _check(config: RunConfig) -> None:
    for key, choices in CHOICES.items():
        if get(config, key) not in choices:
            name = get(config, key)
            raise UserError(f"config.{key}: {name!r} is unknown; {nearest(name, choices)}")
    check_model(config.model)
    check_numbers(config)
    check_combinations(config)
