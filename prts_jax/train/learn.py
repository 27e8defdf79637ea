"""Learned growth: trains the matrices of a growth map on the loss of the grown model.

Sources: G_learn of Du et al., arXiv 2405.15319, App. A; LiGO, arXiv 2303.00980 (100 steps).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from data_pipelines.batches.loader import TrainBatches
from prts_jax import tree
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.matrices_files import read_matrices
from prts_jax.compilation import compile_together
from prts_jax.config import RunConfig
from prts_jax.declaration import Declaration
from prts_jax.errors import DivergedError, Interrupted
from prts_jax.feed import prefetch
from prts_jax.growth import dense
from prts_jax.growth.learned import with_arrays
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_mesh import grow_leaves
from prts_jax.mesh import param_shardings, replicated, sharding
from prts_jax.model.architecture import declare, logits
from prts_jax.model.counts import six_n_d_per_token, training_flops_per_token
from prts_jax.model.inputs import documents_of
from prts_jax.model.loss import token_losses
from prts_jax.train.accumulation import Batch, sum_over_micro_batches
from prts_jax.train.batches import batch_at
from prts_jax.train.optim import adamw, apply_updates
from prts_jax.train.state import TrainState, fresh_state
from prts_jax.train.stopping import Stopping


class Learned(NamedTuple):
    """A growth map after learning.

    Attributes:
      growth_map: the map with the learned matrices.
      lineage: lineage of the source, at the data position where learning began.
      record: steps, tokens, FLOPs and losses of learning, for `Lineage.grown`; empty if nothing was
        learned here.
    """

    growth_map: GrowthMap
    lineage: Lineage
    record: Mapping[str, Any]


Learn = Callable[[GrowthMap, Any, Lineage], Learned]
"""(growth map, source parameters, lineage of the source) → `Learned`."""


def learn(
    config: RunConfig,
    mesh: Mesh,
    batches: TrainBatches,
    growth_map: GrowthMap,
    source_params: Any,
    lineage: Lineage,
    say: Callable[[str], None],
    stopping: Stopping,
    run: str = "",
) -> Learned:
    """Trains the matrices of a dense growth map while the source's parameters are frozen.

    Takes `init.growth.learn_steps` steps of the run's AdamW on the run's batches, starting at the
    lineage's position. The learning rate is constant: `init.growth.learn_rate` divided by the
    number of columns of a matrix. There is no weight decay, because it would pull the map towards
    zero. Learning consumes training data: position, tokens and FLOPs advance, steps do not. The
    result depends on the arguments only. Nothing is written to disk, so an interrupted run learns
    the matrices again.

    Args:
      config: config of the run. With `init.growth.matrices` the matrices are read from that file
        and nothing is trained; `Lineage.grown` books their cost. With learn_steps=0 the map is
        returned unchanged.
      mesh: mesh that holds the source's parameters.
      batches: the training data.
      growth_map: map from the lineage's model to the run's, see `prts_jax.growth.learned`.
      source_params: nested dict of arrays.
      lineage: lineage of the source, at its position in this run's data.
      say: prints a progress message.
      stopping: tells after each step whether to stop.
      run: workdir of the run; kept with the matrices, beside the cost of learning them.

    Raises:
      UserError: the file of matrices cannot be read or belongs to other models.
      DivergedError: the loss is not finite.
      Interrupted: `stopping` returned True.
    """
    growth = config.init.growth
    declarations = declare(growth_map.target)
    if growth.matrices:
        read = read_matrices(growth.matrices)
        growth_map = with_arrays(growth_map, declarations, read.arrays or {}, read.learning)
        return Learned(growth_map, lineage, {})
    if not growth.learn_steps:
        return Learned(growth_map, lineage, {})
    state, losses = _train(config, mesh, batches, growth_map, source_params, lineage, say, stopping)
    gather = jax.jit(lambda arrays: arrays, out_shardings=replicated(mesh))
    arrays = {name: np.asarray(array) for name, array in gather(state.params).items()}
    record = _record(config, growth_map, losses)
    growth_map = with_arrays(growth_map, declarations, arrays, {"run": run, **record})
    return Learned(growth_map, lineage, record)


def _record(
    config: RunConfig, growth_map: GrowthMap, losses: Sequence[float]
) -> dict[str, int | float]:
    """Returns steps, tokens, FLOPs and losses of learning."""
    declarations, steps = declare(growth_map.target), config.init.growth.learn_steps
    tokens = steps * config.data.batch * config.data.length
    flops = tokens * training_flops_per_token(growth_map.target, declarations, config.data.length)
    return {
        "steps": steps,
        "tokens": tokens,
        "flops": flops + steps * dense.learning_flops(growth_map, declarations),
        "flops_6nd": tokens * six_n_d_per_token(declarations),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def make_learn_step(
    config: RunConfig,
    growth_map: GrowthMap,
    declarations: Mapping[str, Declaration],
    optimizer: optax.GradientTransformation,
    shardings: Mapping[str, Any],
) -> jax.stages.Wrapped:
    """Returns the jitted step (state, source leaves, batch) → (state, loss); the state is donated.

    The parameters in the state are the matrices. Each step computes the grown parameters once, also
    when the loss is accumulated over micro-batches.

    Args:
      config: config of the run.
      growth_map: the map whose matrices are trained.
      declarations: path → declaration in the target.
      optimizer: optimizer of the matrices.
      shardings: path → sharding of the grown leaves.
    """

    def grown(arrays: Any, source: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        leaves = grow_leaves(source, growth_map, declarations, arrays)
        return jax.lax.with_sharding_constraint(leaves, dict(shardings))

    def summed_loss(leaves: dict[str, jax.Array], batch: Batch) -> jax.Array:
        params = tree.unflatten(leaves)
        documents = documents_of(batch)
        out = logits(
            params, batch["tokens"], growth_map.target, config.compute, documents=documents
        )
        return jnp.sum(token_losses(out, batch["targets"]) * batch["loss_weights"])

    def learn_step(
        state: TrainState, source: Mapping[str, jax.Array], batch: Batch
    ) -> tuple[TrainState, jax.Array]:
        leaves, to_matrices = jax.vjp(lambda arrays: grown(arrays, source), state.params)
        loss, leaf_gradient = sum_over_micro_batches(
            lambda micro: jax.value_and_grad(summed_loss)(leaves, micro),
            batch,
            config.train.accumulation,
        )
        tokens = jnp.sum(batch["loss_weights"])
        (gradient,) = to_matrices(jax.tree.map(lambda g: g / tokens, leaf_gradient))
        updates, opt_state = optimizer.update(gradient, state.optimizer, state.params)
        # Adam moves every entry by about the same amount, and a row sums over its columns. The
        # update is therefore divided by the number of columns, as in μP (arXiv 2203.03466).
        updates = jax.tree.map(lambda update: update / update.shape[1], updates)
        rate = jnp.asarray(config.init.growth.learn_rate, jnp.float32)
        params = apply_updates(state.params, updates, rate)
        return TrainState(params, opt_state, state.stage_step + 1), loss / tokens

    return jax.jit(learn_step, donate_argnums=0)


def matrices_on_mesh(
    growth_map: GrowthMap, declarations: Mapping[str, Declaration], mesh: Mesh
) -> dict[str, jax.Array]:
    """Returns the initial matrices on the mesh, rows sharded as their target axis, D replicated."""
    arrays = dense.initial(growth_map, declarations)
    matrices: dict[str, jax.Array] = {}
    for name, shape in dense.matrix_shapes(growth_map, declarations).items():
        row_sharding = sharding(mesh, (shape.axis, "features"))
        matrices[name] = jax.make_array_from_callback(
            arrays[name].shape, row_sharding, arrays[name].__getitem__
        )
    return matrices


def _train(
    config: RunConfig,
    mesh: Mesh,
    batches: TrainBatches,
    growth_map: GrowthMap,
    source_params: Any,
    lineage: Lineage,
    say: Callable[[str], None],
    stopping: Stopping,
) -> tuple[TrainState, list[float]]:
    data, steps = config.data, config.init.growth.learn_steps
    declarations = declare(growth_map.target)
    optimizer = adamw(dataclasses.replace(config.optimizer, weight_decay=0.0))
    state = fresh_state(matrices_on_mesh(growth_map, declarations, mesh), optimizer, mesh)
    shardings = param_shardings(mesh, declarations)
    learn_step = make_learn_step(config, growth_map, declarations, optimizer, shardings)
    source = tree.flatten(source_params)

    def batch_of(step: int) -> Batch:
        position = lineage.position + step * data.batch * data.length
        return batch_at(mesh, batches, position)

    compiled = compile_together(
        learn_step, state, source, batch_of(0), tpu_flags=config.compute.tpu_flags
    )
    losses: list[jax.Array] = []
    with contextlib.closing(prefetch(batch_of, 0, steps)) as stream:
        for step, batch in enumerate(stream, start=1):
            state, loss = compiled(state, source, batch)
            losses.append(loss)
            if step % config.logging.every_steps == 0 or step in (1, steps):
                _refuse_divergence(float(loss), step)
                say(f"learning the growth map: step {step}/{steps}  loss {float(loss):.4f}")
            if stopping():
                raise Interrupted(
                    f"stopped by SIGTERM at step {step} of learning the growth map, of which "
                    "nothing is kept; the same command learns it again"
                )
    return state, [float(loss) for loss in losses]


def _refuse_divergence(loss: float, step: int) -> None:
    if not np.isfinite(loss):
        raise DivergedError(
            f"loss: is {loss} at step {step} of learning the growth map: it has diverged; lower "
            "config.init.growth.learn_rate"
        )
