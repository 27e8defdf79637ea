"""One optimizer step, jitted once for its shapes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prts_jax.config import ModelConfig, RunConfig
from prts_jax.model.architecture import declare, logits
from prts_jax.model.inputs import Gates, documents_of
from prts_jax.model.loss import loss_by_source, token_losses
from prts_jax.train.distill import soft_losses
from prts_jax.train.freezing import keep_frozen, trained_parts
from prts_jax.train.optim import apply_updates, learning_rate
from prts_jax.train.state import TrainState

Batch = dict[str, jax.Array]
Sums = dict[str, jax.Array]

MEANS = ("loss", "distillation_loss")
"""Losses that are shown as means over the batch's tokens."""


class StepMetrics(NamedTuple):
    """What one step tells, float32, on the devices until somebody reads them.

    Attributes:
      loss: mean over the batch's tokens, nats.
      loss_tokens: how many these were, the sum of their weights.
      gradient_norm: global norm before clipping.
      learning_rate: of this step.
      source_losses: [sources], summed over the tokens of each source, nats.
      source_tokens: [sources], the sum of their weights.
      distillation_loss: mean of −Σ p_teacher log p_student, nats; None without a teacher.
    """

    loss: jax.Array
    loss_tokens: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    source_losses: jax.Array
    source_tokens: jax.Array
    distillation_loss: jax.Array | None = None


def micro_batches(batch: Batch, count: int) -> Batch:
    """[B, S] → [count, B / count, S], every device keeping the rows it has."""
    return {
        name: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }


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

    The state is donated. The third argument holds the parameters of the model `teacher`, or None.

    The batch is one of `data_pipelines.batches.loader`, each array [batch, length]. The loss is the
    weighted mean over all tokens of the batch, also when it is accumulated over micro-batches.

    Args:
      model: the model's shape.
      config: how it is computed, and how it is trained.
      optimizer: of the state.
      grown_at: step of the lineage at which the stage began.
      sources: how many sources' losses are summed one by one; 0: none are.
      frozen: layers that stay as they are, with the look-up (`prts_jax.train.freezing`); the
        gradient's norm is that of the others. None: everything is trained.
      teacher: the model whose parameters are the third argument; None: without one.
      gates: stage step → gates of what the last growth added; None: all are open.
    """
    parts = {} if frozen is None else trained_parts(declare(model), frozen)

    def summed_losses(
        params: Any, batch: Batch, teacher_params: Any, opened: Gates | None
    ) -> tuple[jax.Array, Sums]:
        """Returns what is minimised, and the sums that metrics show."""
        documents, weights = documents_of(batch), batch["loss_weights"]
        out = logits(
            params,
            batch["tokens"],
            model,
            config.compute,
            documents=documents,
            gates=opened,
            frozen=frozen,
        )
        losses = token_losses(out, batch["targets"])
        by_source = loss_by_source(losses, weights, batch["source_ids"], sources)
        loss = jnp.sum(losses * weights)
        sums = {"loss": loss, "source_losses": by_source[0], "source_tokens": by_source[1]}
        if teacher is None:
            return loss, sums
        taught = logits(
            teacher_params, batch["tokens"], teacher, config.compute, documents=documents
        )
        soft, share = jnp.sum(soft_losses(out, taught) * weights), config.distillation.weight
        return (1 - share) * loss + share * soft, sums | {"distillation_loss": soft}

    gradient_of = jax.grad(summed_losses, has_aux=True)

    def summed_gradient(
        params: Any, batch: Batch, teacher_params: Any, opened: Gates | None
    ) -> tuple[Any, Sums]:
        count = config.train.accumulation
        if count == 1:
            return gradient_of(params, batch, teacher_params, opened)

        def add(total: Any, micro: Batch) -> tuple[Any, None]:
            one = gradient_of(params, micro, teacher_params, opened)
            return jax.tree.map(jnp.add, total, one), None

        parts = micro_batches(batch, count)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient_of, params, first, teacher_params, opened)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zero, parts)
        return total

    def train_step(
        state: TrainState, batch: Batch, teacher_params: Any = None
    ) -> tuple[TrainState, StepMetrics]:
        opened = None if gates is None else gates(state.stage_step)
        gradient, sums = summed_gradient(state.params, batch, teacher_params, opened)
        tokens = jnp.sum(batch["loss_weights"])
        gradient = jax.tree.map(lambda g: g / tokens, gradient)
        updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
        rate = learning_rate(config.schedule, state.stage_step, grown_at)
        params = apply_updates(state.params, updates, rate)
        means = {name: sums.pop(name) / tokens for name in MEANS if name in sums}
        metrics = StepMetrics(
            loss_tokens=tokens,
            gradient_norm=optax.global_norm(gradient),
            learning_rate=rate,
            **means,
            **sums,
        )
        after = TrainState(params, opt_state, state.stage_step + 1)
        return keep_frozen(state, after, parts) if parts else after, metrics

    return jax.jit(train_step, donate_argnums=0)
