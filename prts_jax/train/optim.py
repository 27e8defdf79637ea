"""AdamW and the learning rate. The rate is a function of the step, not part of the optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from prts_jax.config import OptimizerConfig, ScheduleConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Global-norm clip, Adam moments, decoupled weight decay on every parameter.

    What comes out has still to be multiplied by −learning_rate(step): so the optimizer's state
    holds the moments and Adam's count and no second count for the schedule.

    Source: AdamW (arXiv 1711.05101) as in optax; the paper decays norms and embeddings too.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip) if config.clip else optax.identity(),
        optax.scale_by_adam(config.b1, config.b2, config.eps),
        optax.add_decayed_weights(config.weight_decay),
    )


def learning_rate(
    config: ScheduleConfig, stage_step: jax.Array | int, grown_at: int = 0
) -> jax.Array:
    """Learning rate of the step after `stage_step` steps since the last growth.

    A linear warm-up to `peak`, reached at step `warmup_steps`; then, by `kind`: "cosine" falls to
    final · peak at `decay_end`; "wsd" stays until `decay_start` and falls linearly to final · peak
    at `decay_end`; "constant" stays. Past the decay the rate stays at its end.

    Which step these count from is `after_growth`: "restart" counts all from the growth (Du et al.,
    arXiv 2405.15319), "keep" all from the beginning of the lineage, and "rewarm" the warm-up from
    the growth and the rest from the beginning, so that it climbs onto the curve of a run that was
    never grown. Before any growth the three are one.

    Args:
      config: the schedule.
      stage_step: whole number, traced or not.
      grown_at: step of the lineage at which the stage began.

    Returns:
      Scalar float32.
    """
    since_growth = jnp.asarray(stage_step, jnp.float32)
    since_beginning = jnp.asarray(stage_step + grown_at, jnp.float32)
    step = since_growth if config.after_growth == "restart" else since_beginning
    warm = since_beginning if config.after_growth == "keep" else since_growth
    warmup = jnp.minimum(1.0, (warm + 1) / max(config.warmup_steps, 1))
    if config.kind == "constant":
        return config.peak * warmup
    begin = config.warmup_steps if config.kind == "cosine" else config.decay_start
    done = jnp.clip((step - begin) / (config.decay_end - begin), 0.0, 1.0)
    left = 0.5 * (1 + jnp.cos(jnp.pi * done)) if config.kind == "cosine" else 1 - done
    return config.peak * warmup * (config.final + (1 - config.final) * left)


def apply_updates(params: Any, updates: Any, rate: jax.Array) -> Any:
    """Returns params − rate · updates, leaf by leaf."""
    return jax.tree.map(lambda p, u: p - rate * u, params, updates)
