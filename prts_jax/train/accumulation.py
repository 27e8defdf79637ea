"""Sums over the micro-batches of a batch, so that one step needs the memory of a part of it."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Batch = dict[str, jax.Array]
Sums = TypeVar("Sums")


def micro_batches(batch: Batch, count: int) -> Batch:
    """[B, S] → [count, B / count, S], every device keeping the rows it has."""
    return {
        name: x.reshape(x.shape[0] // count, count, *x.shape[1:]).swapaxes(0, 1)
        for name, x in batch.items()
    }


def sum_over_micro_batches(function: Callable[[Batch], Sums], batch: Batch, count: int) -> Sums:
    """Returns Σ function(micro-batch), leaf by leaf, one micro-batch after another.

    Args:
      function: returns a pytree of sums over a batch, such as a gradient of a summed loss.
      batch: arrays [B, S]; `count` divides B.
      count: micro-batches; 1 calls the function on the whole batch.
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
