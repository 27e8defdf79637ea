"""What a training step reads and writes: parameters, optimizer state, the step of this stage."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prts_jax import tree
from prts_jax.declaration import Declaration
from prts_jax.mesh import param_shardings


class TrainState(NamedTuple):
    """Attributes are pytrees of arrays.

    Attributes:
      params: nested dictionary, float32.
      optimizer: state of the optax optimizer for `params`.
      stage_step: int32 scalar, steps since the last growth; drives the learning rate.
    """

    params: Any
    optimizer: Any
    stage_step: jax.Array


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def abstract_params(declarations: Mapping[str, Declaration], mesh: Mesh) -> dict[str, Any]:
    """Returns the parameters as shapes with shardings, without making them."""
    shardings = param_shardings(mesh, declarations)
    return tree.unflatten(
        {
            path: jax.ShapeDtypeStruct(d.shape, d.dtype, sharding=shardings[path])
            for path, d in declarations.items()
        }
    )


def abstract_optimizer(optimizer: optax.GradientTransformation, params: Any, mesh: Mesh) -> Any:
    """Returns the optimizer's state as shapes with shardings, without making it.

    A leaf of the state that belongs to a parameter (a moment) has that parameter's sharding;
    everything else (counts) is replicated.

    Args:
      optimizer: an optax transformation.
      params: nested dictionary of arrays, or of `jax.ShapeDtypeStruct` with shardings.
      mesh: of `params`.
    """
    shardings = {path: leaf.sharding for path, leaf in tree.flatten(params).items()}

    def place(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        where = shardings.get(parameter_path(path), replicated(mesh))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    abstract = jax.eval_shape(optimizer.init, params)
    return jax.tree_util.tree_map_with_path(place, abstract)


def parameter_path(path: tuple[Any, ...]) -> str:
    """Returns which parameter a leaf of a state belongs to ("layers/mlp/up"); "" for none.

    Args:
      path: of the leaf, as `jax.tree_util` gives it.
    """
    return "/".join(str(key.key) for key in path if isinstance(key, jax.tree_util.DictKey))


def fresh_state(
    params: Any, optimizer: optax.GradientTransformation, mesh: Mesh, stage_step: int = 0
) -> TrainState:
    """Returns a state with a new optimizer, as after initialisation or growth."""
    shardings = jax.tree.map(
        lambda leaf: leaf.sharding, abstract_optimizer(optimizer, params, mesh)
    )
    state = jax.jit(optimizer.init, out_shardings=shardings)(params)
    return TrainState(params, state, stage_step_array(stage_step, mesh))


def stage_step_array(stage_step: int, mesh: Mesh) -> jax.Array:
    """Returns the step as a replicated int32 scalar."""
    return jax.device_put(jnp.asarray(stage_step, jnp.int32), replicated(mesh))
