"""The training state: parameters, optimizer state and stage step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh

from prts_jax import tree
from prts_jax.mesh import replicated


class TrainState(NamedTuple):
    """Input and output of a training step: pytrees of arrays on the mesh.

    Attributes:
      params: nested dictionary, float32.
      optimizer: state of the optax optimizer for `params`.
      stage_step: int32 scalar, steps since the start of the stage; sets the learning rate.
      ema: moving average of `params`, in their tree and shardings; None: the run has none.
      losses: last losses, see `prts_jax.train.spikes`; None: the run looks for no spikes.
    """

    params: Any
    optimizer: Any
    stage_step: jax.Array
    ema: Any = None
    losses: jax.Array | None = None


def abstract_optimizer(
    optimizer: optax.GradientTransformation, params: Any, mesh: Mesh | AbstractMesh
) -> Any:
    """Returns the shapes and shardings of the optimizer state without allocating it.

    A moment has the sharding of its parameter; leaves of other shapes (counts) are replicated.

    Args:
      optimizer: an optax transformation; `optax.partition` and `optax.masked` may wrap others.
      params: nested dictionary of arrays, or of `jax.ShapeDtypeStruct` with shardings.
      mesh: mesh of `params`.
    """
    parameters = tree.flatten(params)
    state = jax.eval_shape(optimizer.init, params)

    def with_sharding(path: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        parameter = parameters.get(tree.parameter_of(path, parameters) or "")
        sharding = replicated(mesh)
        if parameter is not None and parameter.shape == leaf.shape:
            sharding = parameter.sharding
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    leaves = [with_sharding(path, leaf) for path, leaf in tree.named_leaves(state).items()]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)


def fresh_state(params: Any, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Returns the state at the start of a stage, with a new optimizer state."""
    abstract = abstract_optimizer(optimizer, params, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    return TrainState(params, state, stage_step_array(0, mesh))


def stage_step_array(stage_step: int, mesh: Mesh) -> jax.Array:
    """Returns the step as a replicated int32 scalar."""
    return jax.device_put(jnp.asarray(stage_step, jnp.int32), replicated(mesh))
