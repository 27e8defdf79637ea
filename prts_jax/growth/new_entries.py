"""New entries of grown parameters: of new layers, and at new positions of wider axes.

The first copy of a layer or of a position is the layer or the position itself; further copies,
fresh ones and layers with zero outputs are new.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.declaration import Declaration
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.widening import along

Parts = Mapping[str, tuple[tuple[int, np.ndarray], ...]]
"""Path → (axis, [size] bool) pairs; an entry is new if any of its axes has a new position."""


def new_parts(growth_map: GrowthMap, declarations: Mapping[str, Declaration]) -> Parts:
    """Returns the new positions along each axis of each parameter."""
    layers = np.isin(np.arange(growth_map.target.layers), growth_map.new_layers())
    news = {"layers": layers} | {
        axis: widening.is_new() for axis, widening in growth_map.widths.items()
    }
    return {
        path: tuple(
            (at, news[axis])
            for at, axis in enumerate(declaration.axes)
            if axis in news and news[axis].any()
        )
        for path, declaration in declarations.items()
    }


def mask_of(parts: tuple[tuple[int, np.ndarray], ...], ndim: int) -> jax.Array:
    """Returns a bool array that broadcasts against a leaf of `ndim` axes, True for new entries."""
    mask = jnp.zeros((1,) * ndim, bool)
    for at, is_new in parts:
        mask = mask | along(jnp.asarray(is_new), at, ndim)
    return mask
