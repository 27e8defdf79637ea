"""The jitted training step."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prts_jax.config import ModelConfig, RunConfig
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.new_entries import new_parts
from prts_jax.model.architecture import declare, in_compute_dtype, logits, losses
from prts_jax.model.inputs import Gates, documents_of
from prts_jax.model.loss import loss_by_source, token_losses
from prts_jax.train import moving_average, spikes
from prts_jax.train.accumulation import (
    Batch,
    axes_summed_once,
    gathered,
    sum_over_micro_batches,
)
from prts_jax.train.distill import soft_losses
from prts_jax.train.freezing import keep_frozen, trained_parts
from prts_jax.train.optim import apply_updates
from prts_jax.train.schedule import learning_rate, new_entries_rate
from prts_jax.train.state import TrainState

Sums = dict[str, jax.Array]

MEANS = ("loss", "distillation_loss")
"""Losses reported as means over the batch's tokens."""


class StepMetrics(NamedTuple):
    """Metrics of one step, float32, on the devices.

    Attributes:
      loss: weighted mean over the batch's tokens, nats.
      loss_tokens: sum of the weights of these tokens.
      gradient_norm: global norm before clipping.
      step_norm: global norm of the change of the parameters; 0 if the step is skipped.
      learning_rate: learning rate of this step.
      source_losses: [sources], weighted sum over the tokens of each source, nats.
      source_tokens: [sources], sum of the weights of these tokens.
      skipped: bool, whether the step left parameters and optimizer as they were.
      distillation_loss: weighted mean of −Σ p_teacher log p_student, nats; None without a teacher.
      deviations: see `prts_jax.train.spikes.Judgement`.
    """

    loss: jax.Array
    loss_tokens: jax.Array
    gradient_norm: jax.Array
    step_norm: jax.Array
    learning_rate: jax.Array
    source_losses: jax.Array
    source_tokens: jax.Array
    skipped: jax.Array
    distillation_loss: jax.Array | None = None
    deviations: jax.Array | None = None


def make_train_step(
    config: RunConfig,
    optimizer: optax.GradientTransformationExtraArgs,
    grown_at: int = 0,
    sources: int = 0,
    frozen: tuple[int, ...] | None = None,
    teacher: ModelConfig | None = None,
    gates: Callable[[jax.Array], Gates] | None = None,
    asymmetric: GrowthMap | None = None,
) -> jax.stages.Wrapped:
    """Returns the jitted step (state, batch, teacher) → (state, StepMetrics).

    The state is donated. A step whose loss or gradient is not finite, or whose loss is a spike by
    `train.skip_spikes`, leaves parameters, their average and the optimizer as they are and only
    counts. The third argument holds the parameters of `teacher`, or is None. The batch comes from
    `data_pipelines.batches.loader`; its arrays are [batch, length]. The loss is the weighted mean
    over all tokens of the batch, with or without accumulation.

    Args:
      config: config of the stage.
      optimizer: optimizer of the stage.
      grown_at: step of the lineage at which the stage started.
      sources: number of sources whose losses are summed separately.
      frozen: layers that are not trained, together with the embedding look-up
        (`prts_jax.train.freezing`); they are excluded from the gradient norm. None: all are
        trained.
      teacher: config of the teacher; None: no distillation.
      gates: stage step → gates of the layers or widths added by the last growth; None: all open.
      asymmetric: the growth whose new entries have a learning rate of their own; None: all entries
        have the same.
    """
    declarations = declare(config.model)
    new = None if asymmetric is None else new_parts(asymmetric, declarations)
    parts = {} if frozen is None else trained_parts(declarations, frozen)
    apart = axes_summed_once(config, declarations)

    def train_step(
        state: TrainState, batch: Batch, teacher_params: Any = None
    ) -> tuple[TrainState, StepMetrics]:
        inputs = {"gates": gates and gates(state.stage_step), "frozen": frozen}
        taught_by = None if teacher is None else (teacher, teacher_params)
        gradient, losses = _mean_gradient(
            state.params, batch, config, sources, taught_by, inputs, apart
        )
        norm = optax.global_norm(gradient)
        rate = learning_rate(config.schedule, state.stage_step, grown_at)
        new_rate = new_entries_rate(config.init.growth, rate, state.stage_step)
        # A step without a finite gradient is skipped: see `prts_jax.train.record`.
        spike = spikes.judge(config, state.losses, losses["loss"])
        taken = jnp.isfinite(norm) & jnp.isfinite(losses["loss"]) & ~spike.skip

        def moved() -> tuple[TrainState, jax.Array]:
            updates, opt_state = optimizer.update(
                gradient, state.optimizer, state.params, gradient_norm=norm
            )
            params = apply_updates(state.params, updates, rate, new, new_rate)
            after = state._replace(params=params, optimizer=opt_state)
            after = keep_frozen(state, after, parts) if parts else after
            after = after._replace(ema=moving_average.updated(config, state.ema, after.params))
            change = jax.tree.map(jnp.subtract, after.params, state.params)
            return after, optax.global_norm(change)

        # A choice between two results would make XLA copy the whole state on CPUs.
        after, step_norm = jax.lax.cond(taken, moved, lambda: (state, jnp.zeros(())))
        after = after._replace(stage_step=state.stage_step + 1, losses=spike.losses)
        metrics = StepMetrics(
            gradient_norm=norm,
            step_norm=step_norm,
            learning_rate=rate,
            skipped=~taken,
            deviations=spike.deviations,
            **losses,
        )
        return after, metrics

    return jax.jit(train_step, donate_argnums=0)


def _mean_gradient(
    params: Any,
    batch: Batch,
    config: RunConfig,
    sources: int,
    teacher: tuple[ModelConfig, Any] | None,
    inputs: Mapping[str, Any],
    apart: Sequence[str],
) -> tuple[Any, Sums]:
    """Returns the gradient of the mean loss, float32, split as declared, and the metrics' losses.

    Args:
      params: parameters of the model.
      batch: arrays [batch, length].
      config: config of the stage.
      sources: number of sources whose losses are summed separately.
      teacher: config and parameters of the teacher; None: no distillation.
      inputs: gates and frozen layers, for `losses` and `logits`.
      apart: mesh axes along which micro-batches take whole weights in the dtype of the computation,
        and over which their gradients are summed once.
    """
    model, weights = config.model, params
    declarations, tokens = declare(model), jnp.sum(batch["loss_weights"])
    if apart:
        weights = in_compute_dtype(weights, model, config.compute)
        weights = gathered(weights, declarations, apart)

    def part_of_mean(weights: Any, micro: Batch) -> tuple[jax.Array, Sums]:
        loss, sums = _summed_losses(weights, micro, config, sources, teacher, inputs)
        return loss / tokens, sums

    def of_micro_batch(micro: Batch) -> tuple[Any, Sums]:
        gradient, sums = jax.grad(part_of_mean, has_aux=True)(weights, micro)
        return jax.tree.map(lambda g: g.astype(jnp.float32), gradient), sums

    count = config.train.accumulation
    gradient, sums = sum_over_micro_batches(of_micro_batch, batch, count, apart)
    means = {name: sums[name] / tokens for name in MEANS if name in sums}
    return gathered(gradient, declarations, ()), sums | means | {"loss_tokens": tokens}


def _summed_losses(
    params: Any,
    batch: Batch,
    config: RunConfig,
    sources: int,
    teacher: tuple[ModelConfig, Any] | None,
    inputs: Mapping[str, Any],
) -> tuple[jax.Array, Sums]:
    """Returns the loss to minimise and the sums for the metrics.

    Args:
      params: parameters of the model.
      batch: arrays [batch, length].
      config: config of the stage.
      sources: number of sources whose losses are summed separately.
      teacher: config and parameters of the teacher; None: no distillation.
      inputs: gates and frozen layers, for `losses` and `logits`.
    """
    tokens, weights, documents = batch["tokens"], batch["loss_weights"], documents_of(batch)
    inputs = {"documents": documents, **inputs}
    model, z_loss = config.model, config.train.z_loss
    if teacher is None:
        of_token = losses(
            params, tokens, batch["targets"], model, config.compute, z_loss=z_loss, **inputs
        )
    else:
        out = logits(params, tokens, model, config.compute, **inputs)
        of_token = token_losses(out, batch["targets"], z_loss)
    by_source = loss_by_source(of_token, weights, batch["source_ids"], sources)
    loss = jnp.sum(of_token * weights)
    sums = {"loss": loss, "source_losses": by_source[0], "source_tokens": by_source[1]}
    if teacher is None:
        return loss, sums
    taught = logits(teacher[1], tokens, teacher[0], config.compute, documents=documents)
    soft, share = jnp.sum(soft_losses(out, taught) * weights), config.distillation.weight
    return (1 - share) * loss + share * soft, sums | {"distillation_loss": soft}
