"""One optimizer step, jitted once for its shapes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prts_jax.config import ModelConfig, RunConfig
from prts_jax.model.inputs import documents_of
from prts_jax.model.llama import declare, logits
from prts_jax.model.loss import loss_by_source, token_losses
from prts_jax.train.freezing import keep_frozen, trained_parts
from prts_jax.train.optim import apply_updates, learning_rate
from prts_jax.train.state import TrainState

Batch = dict[str, jax.Array]


class StepMetrics(NamedTuple):
    """What one step tells, float32, on the devices until somebody reads them.

    Attributes:
      loss: mean over the batch's tokens, nats.
      gradient_norm: global norm before clipping.
      learning_rate: of this step.
      source_losses: [sources], summed over the tokens of each source, nats.
      source_tokens: [sources], the sum of their weights.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array
    source_losses: jax.Array
    source_tokens: jax.Array


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
) -> jax.stages.Wrapped:
    """Returns the jitted step (state, batch) → (state, StepMetrics); the state is donated.

    The batch is one of `data_pipelines.loader`, each array [batch, length]. The loss is the
    weighted mean over all tokens of the batch, also when it is accumulated over micro-batches.

    Args:
      model: the model's shape.
      config: how it is computed, and how it is trained.
      optimizer: of the state.
      grown_at: step of the lineage at which the stage began.
      sources: how many sources' losses are summed one by one; 0: none are.
      frozen: layers that stay as they are, with the look-up (`prts_jax.train.freezing`); the
        gradient's norm is that of the others. None: everything is trained.
    """
    parts = {} if frozen is None else trained_parts(declare(model), frozen)

    def summed_loss(params: Any, batch: Batch) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        documents = documents_of(batch)
        out = logits(
            params, batch["tokens"], model, config.compute, documents=documents, frozen=frozen
        )
        losses, weights = token_losses(out, batch["targets"]), batch["loss_weights"]
        by_source = loss_by_source(losses, weights, batch["source_ids"], sources)
        return jnp.sum(losses * weights), by_source

    with_gradient = jax.value_and_grad(summed_loss, has_aux=True)

    def summed_gradient(params: Any, batch: Batch) -> Any:
        count = config.train.accumulation
        if count == 1:
            return with_gradient(params, batch)

        def add(total: Any, micro: Batch) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, with_gradient(params, micro)), None

        parts = micro_batches(batch, count)
        first = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(with_gradient, params, first)
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = jax.lax.scan(add, zero, parts)
        return total

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        (loss, by_source), gradient = summed_gradient(state.params, batch)
        tokens = jnp.sum(batch["loss_weights"])
        gradient = jax.tree.map(lambda g: g / tokens, gradient)
        updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
        rate = learning_rate(config.schedule, state.stage_step, grown_at)
        params = apply_updates(state.params, updates, rate)
        metrics = StepMetrics(loss / tokens, optax.global_norm(gradient), rate, *by_source)
        after = TrainState(params, opt_state, state.stage_step + 1)
        return keep_frozen(state, after, parts) if parts else after, metrics

    return jax.jit(train_step, donate_argnums=0)
