"""The arithmetic of an optimizer's moments through growth: each follows its parameter.

A moment is an average of powers of gradients, so it grows as the gradient does. Where growth keeps
the function and copies a position k times with weights w (summing to one, in what sums over it):

* a parameter that makes the position gets the share w of the gradient in each copy: `g' = w g`;
* a parameter that sums over it sees the same input in each copy: `g' = g`;
* a new entry, and every entry of a layer with zero outputs, starts at zero.

The second moment takes the squares. Exact for even splits, for mlp and heads also for uneven ones;
with uneven weights on the stream RMS norms mix the copies, and it is an approximation.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.declaration import STREAM, Declaration
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.recipe import query_key_factor, sums_over
from prts_jax.growth.widening import NEW, along


def grow_moment(
    values: jax.Array,
    growth_map: GrowthMap,
    declaration: Declaration,
    power: int,
    rows: jax.Array | None = None,
    first_only: bool = False,
) -> jax.Array:
    """Widens layers of a moment: copied along every axis, weighted where copies share a gradient.

    `values`, `rows` and what is returned are as in `prts_jax.growth.leaf.grow_layers`; new entries
    are zero. The moment holds the gradient to a `power` of 1 or more. With `first_only` the first
    copy of each position keeps the moment as it is, further ones are zero (SPARKLING, arXiv
    2602.02472).
    """
    grown = values
    for at, axis in enumerate(declaration.layer_axes, start=1):
        if axis not in growth_map.widths:
            continue
        widening = growth_map.widths[axis]
        index = np.asarray(widening.index)
        if first_only:
            scale = (~widening.is_new()).astype(np.float32)
            grown = _scaled(grown, scale, index, at, rows)
            continue
        shared = not (sums_over(declaration, axis) or _carries_weights(growth_map, declaration))
        weights = np.asarray(widening.weights) if shared else np.ones(len(index))
        scale = np.where(index == NEW, 0.0, weights**power).astype(np.float32)
        grown = _scaled(grown, scale, index, at, rows)
    if not first_only:
        grown = grown * np.float32(_gradient_factor(growth_map, declaration) ** power)
    return grown.astype(values.dtype)


def _scaled(
    values: jax.Array, scale: np.ndarray, index: np.ndarray, at: int, rows: jax.Array | None
) -> jax.Array:
    """Copies positions along an axis, each times its scale; with `rows` they are copied already."""
    if at == 1 and rows is not None:
        return values * along(jnp.asarray(scale)[rows], at, values.ndim)
    copied = jnp.take(values, np.maximum(index, 0), axis=at)
    return copied * along(scale, at, values.ndim)


def _carries_weights(growth_map: GrowthMap, declaration: Declaration) -> bool:
    """Returns whether a norm's scale holds the weights of the sum after it, of a tied head."""
    return growth_map.target.tied and declaration.scales_stream and not declaration.stacked


def _gradient_factor(growth_map: GrowthMap, declaration: Declaration) -> float:
    """Returns the factor of the gradients of norms, queries and keys beside the copies' weights.

    A norm divides by the root of the mean square, which new zero components lower: its scale's
    gradient rises by as much. A projection that growth multiplied by c has 1/c of the gradient.
    """
    if declaration.scales_stream and STREAM in growth_map.widths:
        index = growth_map.widths[STREAM].index
        return math.sqrt(len(index) / sum(position != NEW for position in index))
    return 1 / query_key_factor(growth_map, declaration)
