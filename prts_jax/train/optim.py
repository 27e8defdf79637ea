"""The optimizers: AdamW, or Muon with AdamW for what is no matrix of a layer."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from prts_jax import tree
from prts_jax.config import OptimizerConfig, RunConfig
from prts_jax.declaration import Declaration, Kind
from prts_jax.growth.new_entries import Parts, mask_of
from prts_jax.model.architecture import declare
from prts_jax.train import muon, scaling


def make_optimizer(run: RunConfig) -> optax.GradientTransformationExtraArgs:
    """Returns the optimizer of a stage: clipping, moments, weight decay.

    The caller multiplies its updates by −learning_rate(step), so the optimizer state holds the
    moments and Adam's count, but no second count for the schedule. A caller that has the global
    norm of the gradient gives it to `update` as `gradient_norm`.

    Args:
      run: config of the stage; its model's declarations say which parameters are matrices.

    Source: AdamW (arXiv 1711.05101) as in optax; Muon as in `prts_jax.train.muon`;
    multipliers as in `prts_jax.train.scaling`.
    """
    config, declarations = run.optimizer, declare(run.model)
    kinds = optax.scale_by_adam(config.b1, config.b2, config.eps)
    if run.scaling.kind != "none":
        of_leaves = scaling.multipliers(run)
        kinds = scaling.scale_by_adam(config.b1, config.b2, config.eps, of_leaves)
    if config.kind == "muon":
        momenta = muon.scale_by_muon(declarations, config.momentum, run.compute.dtype)
        parts = {"muon": momenta, "adam": kinds}
        kinds = optax.partition(parts, muon.labels(declarations))
    return _clipped_and_decayed(config, kinds, _decayed(config, declarations))


def adamw(config: OptimizerConfig) -> optax.GradientTransformationExtraArgs:
    """Returns AdamW for any tree: global-norm clipping, Adam moments, decay of every leaf."""
    return _clipped_and_decayed(config, optax.scale_by_adam(config.b1, config.b2, config.eps), None)


def _clipped_and_decayed(
    config: OptimizerConfig, moments: optax.GradientTransformation, decayed: Any
) -> optax.GradientTransformationExtraArgs:
    clip = _clip(config.clip) if config.clip else optax.identity()
    decay = optax.add_decayed_weights(config.weight_decay, decayed)
    return optax.with_extra_args_support(optax.chain(clip, moments, decay))


def _clip(most: float) -> optax.GradientTransformationExtraArgs:
    """Returns optax's clip of the global norm, for callers that may know the norm.

    Every entry is multiplied by one factor; optax divides every entry, in a pass of its own.
    """

    def update(
        updates: Any, state: Any, params: Any = None, *, gradient_norm: Any = None, **others: Any
    ) -> tuple[Any, Any]:
        del params, others
        norm = optax.global_norm(updates) if gradient_norm is None else gradient_norm
        factor = jnp.where(norm < most, 1.0, most / norm)
        return jax.tree.map(lambda u: u * factor.astype(u.dtype), updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)


def _decayed(config: OptimizerConfig, declarations: Mapping[str, Declaration]) -> Any:
    """Returns a nested mask of the decayed parameters; None: all, as in the paper."""
    if config.decay == "all":
        return None
    return tree.unflatten(
        {path: d.kind not in (Kind.TABLE, Kind.NORM) for path, d in declarations.items()}
    )


def apply_updates(
    params: Any,
    updates: Any,
    rate: jax.Array,
    new: Parts | None = None,
    new_rate: jax.Array | None = None,
) -> Any:
    """Returns params − rate · updates, leaf by leaf.

    Args:
      params: nested dictionary of arrays.
      updates: the same structure.
      rate: scalar.
      new: the new entries of a grown model; None: all entries have one rate.
      new_rate: scalar, the rate of the new entries.
    """
    if new is None or new_rate is None:
        return jax.tree.map(lambda p, u: p - rate * u, params, updates)
    leaves, changes = tree.flatten(params), tree.flatten(updates)
    rates = {
        path: jnp.where(mask_of(new[path], p.ndim), new_rate, rate) for path, p in leaves.items()
    }
    return tree.unflatten({path: p - rates[path] * changes[path] for path, p in leaves.items()})
