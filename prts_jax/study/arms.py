"""Arms from one config: scratch at several budgets, bases, and runs grown from a base."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from prts_jax import config as config_lib
from prts_jax.study.design import Arm, equal_steps, flops_of_step
from prts_jax.train.schedule import goes_on

DECAY = 0.1
"""Share of a WSD run that its decay takes (arXiv 2511.04981)."""


def scratch(
    config: ConfigDict,
    budget: float = 1.0,
    peaks: tuple[float, ...] = (),
    published: float | None = None,
) -> Arm:
    """Returns a run from scratch on a share of the steps, with a schedule that ends with it.

    The config is that of the run at the whole budget; for `peaks` and `published` see `Arm`.
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
    """Returns a smaller model to grow from, which spends a share of the scratch run's FLOPs.

    `config` is that of the scratch run at the whole budget; `changes`, dotted keys and values, make
    it smaller.
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

    `config` is that of the scratch run at the whole budget; `changes` are dotted keys and values,
    such as {"init.growth.operator": "stack"}.
    """
    flops = config.train.steps * flops_of_step(config_lib.resolve(config))
    changed = fitted(changed_by(config, changes))
    changed.train.steps = equal_steps(flops, changed, of.config)
    schedule = goes_on(config_lib.resolve(changed), None).schedule
    before = 0 if schedule.after_growth == "restart" else of.config.train.steps
    fit = fitted(changed, before)
    return Arm(name, "grown", fit, base=of.name, peaks=peaks, published=published)


def changed_by(config: ConfigDict, changes: Mapping[str, Any]) -> ConfigDict:
    """Returns a copy of a config with dotted keys changed."""
    copy = config.copy_and_resolve_references()
    copy.update_from_flattened_dict(dict(changes))
    return copy


def fitted(config: ConfigDict, before: int = 0) -> ConfigDict:
    """Returns the config with a schedule that ends when the run does: cosine, or WSD's decay.

    The schedule counts the steps of the base, `before`, too.
    """
    steps = config.train.steps
    config.schedule.warmup_steps = min(config.schedule.warmup_steps, max(1, steps // 10))
    decays = config.schedule.kind == "wsd"
    config.schedule.decay_start = before + round((1 - DECAY) * steps) if decays else 0
    config.schedule.decay_end = before + steps
    config.checkpoint.every_steps = max(1, steps // 2)
    return config
