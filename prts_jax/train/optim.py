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


def learning_rate(config: ScheduleConfig, stage_step: jax.Array | int) -> jax.Array:
    """Learning rate of the step after `stage_step` steps since the last growth.

    A linear warm-up to `peak`, reached at step `warmup_steps`; then, by `kind`: "cosine" falls to
    final · peak at `decay_end`; "wsd" stays until `decay_start` and falls linearly to final · peak
    at `decay_end`; "constant" stays. Past the decay the rate stays at its end.

    Args:
      config: the schedule.
      stage_step: whole number, traced or not.

    Returns:
      Scalar float32.
    """
    step = jnp.asarray(stage_step, jnp.float32)
    warmup = jnp.minimum(1.0, (step + 1) / max(config.warmup_steps, 1))
    if config.kind == "constant":
        return config.peak * warmup
    begin = config.warmup_steps if config.kind == "cosine" else config.decay_start
    done = jnp.clip((step - begin) / (config.decay_end - begin), 0.0, 1.0)
    left = 0.5 * (1 + jnp.cos(jnp.pi * done)) if config.kind == "cosine" else 1 - done
    return config.peak * warmup * (config.final + (1 - config.final) * left)


def apply_updates(params: Any, updates: Any, rate: jax.Array) -> Any:
    """Returns params − rate · updates, leaf by leaf."""
    return jax.tree.map(lambda p, u: p - rate * u, params, updates)
