"""Gradient accumulation: sums over micro-batches, so a step needs the memory of one of them.

On a mesh each part of the batch can sum its own gradients, which are then exchanged once a step.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from prts_jax.mesh import changed_rules, mesh_axes

Batch = dict[str, jax.Array]
Sums = TypeVar("Sums")




def micro_batches(batch: Batch, count: int, parts: int = 1) -> Batch:
    """Reshapes arrays [B, S] to [count, parts, B / count / parts, S].

    Rows stay on their devices where the mesh splits B into a multiple of `parts`.
    """
    return {
        name: jnp.moveaxis(x.reshape(parts, -1, count, *x.shape[1:]), 2, 0)
        for name, x in batch.items()
    }


def sum_over_micro_batches(
    function: Callable[[Any, Batch], Sums],
    weights: Any,
    batch: Batch,
    count: int,
    apart: Sequence[str] = (),
) -> Sums:
    """Returns the leaf-wise sum of function(weights, micro-batch), computed in sequence.

    Args:
      function: returns a pytree of sums over a batch, such as the gradient of a summed loss.
      weights: first argument of `function`.
      batch: arrays [B, S]; B is a multiple of `count`.
      count: number of micro-batches; 1 calls the function on the whole batch.
      apart: mesh axes that split the batch, over which sums are taken once, after the last
        micro-batch. Until then a device holds the sums of its own part, and weights must not be
        split by these axes.
    """
    if count == 1:
        return function(weights, batch)
    split = mesh_axes("batch")
    parts = math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in apart)

    def of_parts(micro: Batch) -> Sums:
        """Returns the sums of each part of a micro-batch: leaves [parts, …]."""
        with changed_rules(batch=tuple(axis for axis in split if axis not in apart) or None):
            mapped = jax.vmap(function, in_axes=(None, 0), spmd_axis_name=tuple(apart))
            sums: Sums = mapped(weights, micro)
        return sums

    def of_micro_batch(micro: Batch) -> Sums:
        if apart:
            return of_parts(micro)
        return function(weights, {name: x[0] for name, x in micro.items()})

    def add(total: Sums, micro: Batch) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, of_micro_batch(micro)), None

    micros = micro_batches(batch, count, parts)
    shapes = jax.eval_shape(of_micro_batch, {name: x[0] for name, x in micros.items()})
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total: Sums = jax.lax.scan(add, zero, micros)[0]
    return jax.tree.map(lambda x: x.sum(0), total) if apart else total
