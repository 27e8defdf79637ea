"""Gradient accumulation: sums over micro-batches, so a step needs the memory of one of them."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
Sums = TypeVar("Sums")


def micro_batches(batch: Batch, count: int) -> Batch:
    """Reshapes arrays [B, S] to [count, B / count, S] without moving rows between devices."""
    return {
        name: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }


def sum_over_micro_batches(function: Callable[[Batch], Sums], batch: Batch, count: int) -> Sums:
    """Returns the leaf-wise sum of function(micro-batch) over micro-batches, computed in sequence.

    Args:
      function: returns a pytree of sums over a batch, such as the gradient of a summed loss.
      batch: arrays [B, S]; B is a multiple of `count`.
      count: number of micro-batches; 1 calls the function on the whole batch.
    """
    if count == 1:
        return function(batch)

    def add(total: Sums, micro: Batch) -> tuple[Sums, None]:
        return jax.tree.map(jnp.add, total, function(micro)), None

    parts = micro_batches(batch, count)
    shapes = jax.eval_shape(function, {name: x[0] for name, x in parts.items()})
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total: Sums = jax.lax.scan(add, zero, parts)[0]
    return total
