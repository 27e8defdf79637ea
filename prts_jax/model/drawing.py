"""Random values of some rows of an array: those that drawing the whole array gives them."""

import functools
import math
from typing import Any, Protocol

import jax
import jax.extend.random
import jax.numpy as jnp
import numpy as np


class Draw(Protocol):
    """Draws an array, as `jax.random.normal` does."""

    def __call__(self, key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Returns an array of a shape; each element a function of the key and its flat index."""


def draw_rows(
    draw: Draw, key: jax.Array, shape: tuple[int, ...], rows: jax.Array | None = None
) -> jax.Array:
    """Draws rows of an array, with the memory of these rows.

    JAX's threefry is a function of a key and a counter, which is the flat index of the element in
    the array (`jax_threefry_partitionable`, on by default): so a row is drawn alone by starting
    the counter at its first element.

    Args:
      draw: any drawing of `jax.random` for values of at most 32 bits.
      key: a threefry key.
      shape: of the whole array.
      rows: `[r]` int32, positions along its first axis; None draws the whole array.

    Returns:
      `[r, …]`: `draw(key, shape)[rows]`, from the same random bits; inside one compiled function
      a compiler may round what it makes of them another way in the last bit.

    Raises:
      ValueError: the whole array has 2^32 elements or more.
    """
    if rows is None:
        return draw(key, shape)
    if math.prod(shape) >= 2**32:
        raise ValueError(f"rows of an array of {math.prod(shape)} elements cannot be drawn")
    row_size = np.uint32(math.prod(shape[1:]))

    def row(place: jax.Array) -> jax.Array:
        first = place.astype(jnp.uint32) * row_size
        words = jnp.concatenate([jax.random.key_data(key), first[None]])
        return draw(jax.random.wrap_key_data(words, impl=_from_counter()), shape[1:])

    return jax.vmap(row)(rows)


@functools.cache
def _from_counter() -> Any:
    """Returns JAX's threefry with a third word in its keys: the counter of the first element."""

    def bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
        low = jax.lax.iota(jnp.uint32, math.prod(shape)) + key[2]
        # The public function takes the high words of all counters, then the low ones.
        counters = jnp.concatenate([jnp.zeros_like(low), low])
        high, low = jnp.split(jax.extend.random.threefry_2x32(key[:2], counters), 2)
        return (high ^ low).astype(f"uint{bit_width}").reshape(shape)

    def refuse(*arguments: Any) -> jax.Array:
        raise TypeError("such a key only draws")

    return jax.extend.random.define_prng_impl(
        key_shape=(3,), seed=refuse, split=refuse, random_bits=bits, fold_in=refuse
    )
