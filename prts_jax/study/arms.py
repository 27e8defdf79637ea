"""Arms from one config: scratch at several budgets, bases, and runs grown from a base."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from prts_jax import config as config_lib
from prts_jax.study.design import Arm, equal_steps, flops_of_step

DECAY = 0.1
"""Share of a WSD run that its decay takes (arXiv 2511.04981)."""


def scratch(
    config: ConfigDict,
    budget: float = 1.0,
    peaks: tuple[float, ...] = (),
    published: float | None = None,
) -> Arm:
    """Returns a run from scratch on a share of the FLOPs, with a schedule that ends with it.

    Args:
      config: of the run at the whole budget, `train.steps` included.
      budget: share of its steps.
      peaks: see `Arm`.
      published: see `Arm`.
    """
    changed = changed_by(config, {"train.steps": max(1, round(budget * config.train.steps))})
    name = "scratch" if budget == 1.0 else f"scratch@{budget:g}"
    return Arm(name, "scratch", fitted(changed), peaks=peaks, published=published)


def base(
    config: ConfigDict,
    name: str,
    changes: Mapping[str, Any],
    share: float,
    peaks: tuple[float, ...] = (),
) -> Arm:
    """Returns a smaller model to grow from.

    Args:
      config: of the scratch run at the whole budget.
      name: of the arm.
      changes: dotted keys and values that make it smaller.
      share: of the scratch run's FLOPs that the base spends.
      peaks: see `Arm`.
    """
    changed = fitted(changed_by(config, changes))
    flops = share * config.train.steps * flops_of_step(config_lib.resolve(config))
    changed.train.steps = equal_steps(flops, changed)
    return Arm(name, "base", fitted(changed), peaks=peaks)


def grown(
    config: ConfigDict,
    name: str,
    of: Arm,
    changes: Mapping[str, Any],
    peaks: tuple[float, ...] = (),
    published: float | None = None,
) -> Arm:
    """Returns a run that grows from a base and spends the rest of the scratch run's FLOPs.

    Args:
      config: of the scratch run at the whole budget.
      name: of the arm.
      of: the base.
      changes: dotted keys and values, such as {"init.growth.operator": "stack"}.
      peaks: see `Arm`.
      published: see `Arm`.
    """
    flops = config.train.steps * flops_of_step(config_lib.resolve(config))
    changed = fitted(changed_by(config, changes))
    changed.train.steps = equal_steps(flops, changed, of.config)
    return Arm(name, "grown", fitted(changed), base=of.name, peaks=peaks, published=published)


def changed_by(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a config with dotted keys changed."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(dict(changes))
    return copy


def fitted(config: ConfigDict) -> ConfigDict:
    """Returns the config with a schedule that ends when the run does: cosine, or WSD's decay."""
    steps = config.train.steps
    config.schedule.warmup_steps = min(config.schedule.warmup_steps, max(1, steps // 10))
    config.schedule.decay_start = round((1 - DECAY) * steps) if config.schedule.kind == "wsd" else 0
    config.schedule.decay_end = steps
    config.checkpoint.every_steps = max(1, steps // 2)
    return config
