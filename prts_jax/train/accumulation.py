"""Gradient accumulation: sums over micro-batches, so a step needs the memory of one of them.

On a mesh each part of the batch sums its own gradients where memory allows; the devices then
exchange them once a step instead of once a micro-batch.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from prts_jax import tree
from prts_jax.config import RunConfig
from prts_jax.declaration import Declaration
from prts_jax.mesh import axis_size, constrain, device_bytes, mesh_axes, rules_without

Batch = dict[str, jax.Array]
Sums = TypeVar("Sums")

_SHARE = 3
"""Whole weights and gradients may take one part in so many of a device's memory."""
_BYTES_PER_PARAMETER = 6
"""A bfloat16 weight and a float32 gradient."""


def axes_summed_once(config: RunConfig, declarations: Mapping[str, Declaration]) -> tuple[str, ...]:
    """Returns the axes of the mesh in context over which gradients are summed once a step.

    The axis `data` does not split parameters and always belongs to them. The others that split the
    batch split parameters as well: a device then holds weights and gradients that are whole along
    them.

    Args:
      config: config of the stage; without accumulation, each axis sums as the compiler places it.
      declarations: of the parameters.
    """
    choice, mesh = config.mesh.reduce_gradients, jax.sharding.get_mesh()
    if config.train.accumulation == 1 or mesh.empty:
        return ()
    split = tuple(axis for axis in mesh_axes("batch") if mesh.shape[axis] > 1)
    with rules_without(split):
        whole = sum(
            math.prod(d.shape) / math.prod(axis_size(mesh, axis) for axis in d.axes)
            for d in declarations.values()
        )
    fits = _SHARE * _BYTES_PER_PARAMETER * whole <= device_bytes(mesh.devices.flat[0])
    if choice == "step" or (choice == "auto" and fits):
        return split
    of_parameters = {
        name for d in declarations.values() for axis in d.axes for name in mesh_axes(axis)
    }
    return tuple(axis for axis in split if axis not in of_parameters)


def gathered(
    params: Mapping[str, Any], declarations: Mapping[str, Declaration], axes: Sequence[str]
) -> dict[str, Any]:
    """Returns parameters or gradients, split as declared but whole along these mesh axes."""
    with rules_without(axes):
        leaves = tree.flatten(params).items()
        return tree.unflatten({path: constrain(x, declarations[path].axes) for path, x in leaves})


def micro_batches(batch: Batch, count: int, parts: int = 1) -> Batch:
    """Reshapes arrays [B, S] to [count, parts, B / count / parts, S].

    Rows stay on their devices where the mesh splits B into a multiple of `parts`.
    """
    return {
        name: jnp.moveaxis(x.reshape(parts, -1, count, *x.shape[1:]), 2, 0)
        for name, x in batch.items()
    }


def sum_over_micro_batches(
    function: Callable[[Batch], Sums], batch: Batch, count: int, apart: Sequence[str] = ()
) -> Sums:
    """Returns the leaf-wise sum of function(micro-batch) over micro-batches, computed in sequence.

    Args:
      function: returns a pytree of sums over a batch, such as the gradient of a summed loss.
      batch: arrays [B, S]; B is a multiple of `count`.
      count: number of micro-batches; 1 calls the function on the whole batch.
      apart: mesh axes that split the batch, over which sums are taken once, after the last
        micro-batch. Until then a device holds the sums of its own part.
    """
    if count == 1:
        return function(batch)
    parts = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in apart)

    def sums_of(micro: Batch) -> Sums:
        """Returns the sums of a micro-batch, of each part with leaves [parts, …]."""
        if not apart:
            return function({name: x[0] for name, x in micro.items()})
        with rules_without(apart):
            of_part: Sums = jax.vmap(function, spmd_axis_name=tuple(apart))(micro)
        return of_part

    def add(total: Sums, micro: Batch) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, sums_of(micro)), None

    micros = micro_batches(batch, count, parts)
    shapes = jax.eval_shape(sums_of, {name: x[0] for name, x in micros.items()})
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total: Sums = jax.lax.scan(add, zero, micros)[0]
    return jax.tree.map(lambda x: x.sum(0), total) if apart else total
