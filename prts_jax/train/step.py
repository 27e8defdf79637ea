"""One optimizer step, jitted once for its shapes."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from prts_jax.config import ModelConfig, RunConfig
from prts_jax.model.llama import logits
from prts_jax.model.loss import token_losses
from prts_jax.train.optim import apply_updates, learning_rate
from prts_jax.train.state import TrainState

Batch = dict[str, jax.Array]


class StepMetrics(NamedTuple):
    """Scalars of one step, float32, on the devices until somebody reads them.

    Attributes:
      loss: mean over the batch's tokens, nats.
      gradient_norm: global norm before clipping.
      learning_rate: of this step.
    """

    loss: jax.Array
    gradient_norm: jax.Array
    learning_rate: jax.Array


def _micro_batches(batch: Batch, count: int) -> Batch:
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
) -> jax.stages.Wrapped:
    """Returns the jitted step (state, batch) → (state, StepMetrics); the state is donated.

    The batch has tokens and targets [batch, length] int32 and loss_weights [batch, length]
    float32. The loss is the weighted mean over all tokens of the batch, also when it is
    accumulated over micro-batches. `grown_at` is the step of the lineage at which the stage began.
    """

    def summed_loss(params: Any, batch: Batch) -> jax.Array:
        out = logits(params, batch["tokens"], model, config.compute)
        return jnp.sum(token_losses(out, batch["targets"]) * batch["loss_weights"])

    def summed_gradient(params: Any, batch: Batch) -> tuple[jax.Array, Any]:
        count = config.train.accumulation
        if count == 1:
            return jax.value_and_grad(summed_loss)(params, batch)

        def add(total: Any, micro: Batch) -> tuple[Any, None]:
            one = jax.value_and_grad(summed_loss)(params, micro)
            return jax.tree.map(jnp.add, total, one), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, _micro_batches(batch, count))
        return total

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        loss, gradient = summed_gradient(state.params, batch)
        tokens = jnp.sum(batch["loss_weights"])
        gradient = jax.tree.map(lambda g: g / tokens, gradient)
        updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
        rate = learning_rate(config.schedule, state.stage_step, grown_at)
        params = apply_updates(state.params, updates, rate)
        metrics = StepMetrics(loss / tokens, optax.global_norm(gradient), rate)
        return TrainState(params, opt_state, state.stage_step + 1), metrics

    return jax.jit(train_step, donate_argnums=0)
