"""The learning rate: a function of the step that is not part of the optimizer."""

import dataclasses

import jax
import jax.numpy as jnp

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import GrowthConfig, RunConfig, ScheduleConfig


def learning_rate(
    config: ScheduleConfig, stage_step: jax.Array | int, grown_at: int = 0
) -> jax.Array:
    """Returns the learning rate of the step after `stage_step` steps of the stage.

    A linear warm-up reaches `peak` at step `warmup_steps`. Then `kind` decides: "cosine" falls to
    final · peak at `decay_end`; "wsd" is constant until `decay_start` and falls linearly to
    final · peak at `decay_end`; "constant" stays at `peak`. After `decay_end` the rate is constant.

    `after_growth` decides which steps count: "restart" counts all from the growth (Du et al.,
    arXiv 2405.15319); "keep" counts all from the start of the lineage; "rewarm" counts the warm-up
    from the growth and the rest from the start of the lineage, so the rate returns to the schedule
    of a run without growth. Without growth the three are the same.

    Args:
      config: the schedule.
      stage_step: integer, traced or not.
      grown_at: step of the lineage at which the stage started.

    Returns:
      Scalar float32.
    """
    since_growth = jnp.asarray(stage_step, jnp.float32)
    since_beginning = jnp.asarray(stage_step + grown_at, jnp.float32)
    step = since_growth if config.after_growth == "restart" else since_beginning
    warm = since_beginning if config.after_growth == "keep" else since_growth
    warmup = jnp.minimum(1.0, (warm + 1) / float(max(config.warmup_steps, 1)))
    if config.kind == "constant":
        return config.peak * warmup
    begin = config.warmup_steps if config.kind == "cosine" else config.decay_start
    progress = jnp.clip((step - float(begin)) / float(config.decay_end - begin), 0.0, 1.0)
    decay = 0.5 * (1 + jnp.cos(jnp.pi * progress)) if config.kind == "cosine" else 1 - progress
    return config.peak * warmup * (config.final + (1 - config.final) * decay)


def new_entries_rate(
    config: GrowthConfig, rate: jax.Array, stage_step: jax.Array | int
) -> jax.Array:
    """Returns the learning rate of entries that growth added, with `optimizer` "asymmetric".

    During the first `new_rate_steps` steps s = 0, 1, … of the stage it is

        new_rate · (s + 1) / new_rate_steps · rate

    and then `rate`, that of all other entries. Source: SPARKLING (arXiv 2602.02472).
    """
    steps = max(config.new_rate_steps, 1)
    rising = config.new_rate * (jnp.asarray(stage_step, jnp.float32) + 1) / steps
    return rate * jnp.where(jnp.asarray(stage_step) < config.new_rate_steps, rising, 1.0)


def goes_on(config: RunConfig, lineage: Lineage | None) -> RunConfig:
    """Returns the config of a stage whose schedule goes on through growth where its state does.

    With the policies "keep" and "asymmetric", `schedule.after_growth` "restart" becomes "keep";
    "rewarm" stays.

    Args:
      config: config of the stage.
      lineage: of a checkpoint of the stage, or of one that was just grown: its policy counts. None
        for a stage that begins with a growth, or without one.
    """
    policy = config.init.growth.optimizer
    record = None if lineage is None else lineage.growth_of_stage()
    if record is not None and record.optimizer:
        policy = record.optimizer
    if policy not in ("keep", "asymmetric") or config.schedule.after_growth != "restart":
        return config
    schedule = dataclasses.replace(config.schedule, after_growth="keep")
    return dataclasses.replace(config, schedule=schedule)
