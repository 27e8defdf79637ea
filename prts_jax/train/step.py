"""The jitted training step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prts_jax.config import ModelConfig, RunConfig
from prts_jax.model.architecture import declare, logits, losses
from prts_jax.model.inputs import Gates, documents_of
from prts_jax.model.loss import loss_by_source, token_losses
from prts_jax.train.accumulation import Batch, sum_over_micro_batches
from prts_jax.train.distill import soft_losses
from prts_jax.train.freezing import keep_frozen, trained_parts
from prts_jax.train.optim import apply_updates
from prts_jax.train.schedule import learning_rate
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
      learning_rate: learning rate of this step.
      source_losses: [sources], weighted sum over the tokens of each source, nats.
      source_tokens: [sources], sum of the weights of these tokens.
      distillation_loss: weighted mean of −Σ p_teacher log p_student, nats; None without a teacher.
    """

    loss: jax.Array
    loss_tokens: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    source_losses: jax.Array
    source_tokens: jax.Array
    distillation_loss: jax.Array | None = None


def make_train_step(
    model: ModelConfig,
    config: RunConfig,
    optimizer: optax.GradientTransformation,
    grown_at: int = 0,
    sources: int = 0,
    frozen: tuple[int, ...] | None = None,
    teacher: ModelConfig | None = None,
    gates: Callable[[jax.Array], Gates] | None = None,
) -> jax.stages.Wrapped:
    """Returns the jitted step (state, batch, teacher) → (state, StepMetrics).

    The state is donated. A step whose loss or gradient is not finite leaves parameters and
    optimizer as they are and only counts. The third argument holds the parameters of `teacher`, or
    is None. The batch comes from `data_pipelines.batches.loader`; its arrays are [batch, length].
    The loss is the weighted mean over all tokens of the batch, with or without accumulation.

    Args:
      model: config of the model.
      config: config of the stage.
      optimizer: optimizer of the stage.
      grown_at: step of the lineage at which the stage started.
      sources: number of sources whose losses are summed separately.
      frozen: layers that are not trained, together with the embedding look-up
        (`prts_jax.train.freezing`); they are excluded from the gradient norm. None: all are
        trained.
      teacher: config of the teacher; None: no distillation.
      gates: stage step → gates of the layers or widths added by the last growth; None: all open.
    """
    parts = {} if frozen is None else trained_parts(declare(model), frozen)

    def summed_losses(
        params: Any, batch: Batch, teacher_params: Any, opened: Gates | None
    ) -> tuple[jax.Array, Sums]:
        """Returns the loss to minimise and the sums for the metrics."""
        documents, weights = documents_of(batch), batch["loss_weights"]
        inputs: dict[str, Any] = {"documents": documents, "gates": opened, "frozen": frozen}
        if teacher is None:
            of_token = losses(
                params, batch["tokens"], batch["targets"], model, config.compute, **inputs
            )
        else:
            out = logits(params, batch["tokens"], model, config.compute, **inputs)
            of_token = token_losses(out, batch["targets"])
        by_source = loss_by_source(of_token, weights, batch["source_ids"], sources)
        loss = jnp.sum(of_token * weights)
        sums = {"loss": loss, "source_losses": by_source[0], "source_tokens": by_source[1]}
        if teacher is None:
            return loss, sums
        taught = logits(
            teacher_params, batch["tokens"], teacher, config.compute, documents=documents
        )
        soft, share = jnp.sum(soft_losses(out, taught) * weights), config.distillation.weight
        return (1 - share) * loss + share * soft, sums | {"distillation_loss": soft}

    def train_step(
        state: TrainState, batch: Batch, teacher_params: Any = None
    ) -> tuple[TrainState, StepMetrics]:
        opened = None if gates is None else gates(state.stage_step)

        def gradient_of(micro: Batch) -> tuple[Any, Sums]:
            gradient = jax.grad(summed_losses, has_aux=True)
            return gradient(state.params, micro, teacher_params, opened)

        gradient, sums = sum_over_micro_batches(gradient_of, batch, config.train.accumulation)
        tokens = jnp.sum(batch["loss_weights"])
        gradient = jax.tree.map(lambda g: g / tokens, gradient)
        updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
        rate = learning_rate(config.schedule, state.stage_step, grown_at)
        params = apply_updates(state.params, updates, rate)
        means = {name: sums.pop(name) / tokens for name in MEANS if name in sums}
        norm = optax.global_norm(gradient)
        # A step without a finite gradient is skipped: see `prts_jax.train.record`.
        finite = jnp.isfinite(norm) & jnp.isfinite(means["loss"])
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state),
            (state.params, state.optimizer),
        )
        metrics = StepMetrics(
            loss_tokens=tokens,
            gradient_norm=norm,
            learning_rate=rate,
            **means,
            **sums,
        )
        after = TrainState(params, opt_state, state.stage_step + 1)
        return keep_frozen(state, after, parts) if parts else after, metrics

    return jax.jit(train_step, donate_argnums=0)
