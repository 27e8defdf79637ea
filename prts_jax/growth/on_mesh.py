"""Growth on the mesh: source parameters become the target's without a file in between."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.growth.map import GrowthMap
from prts_jax.model.declaration import Declaration
from prts_jax.tree import flatten, unflatten


def grow_params(
    source_params: Mapping[str, Any],
    growth_map: GrowthMap,
    declarations: Mapping[str, Declaration],
    shardings: Mapping[str, Any],
) -> dict[str, Any]:
    """Grows parameters where they live, in one jitted function.

    While the layer axis is not sharded this needs no collective: each device copies its own part.
    Memory at its peak is the source's and the target's together.

    Args:
      source_params: nested dict of arrays on the target's mesh, `[layers, …]` where stacked.
      growth_map: what becomes of them.
      declarations: path → declaration in the target model.
      shardings: nested dict of the target's shardings, one for each leaf.

    Returns:
      Nested dict of the target's arrays, bit for bit the source's layers (or zero).
    """
    layers = np.asarray(growth_map.layers, np.int32)
    zeroed = np.isin(np.arange(len(layers)), growth_map.zeroed)

    def grow_leaf(leaf: jax.Array, declaration: Declaration) -> jax.Array:
        if not declaration.stacked:
            return leaf
        grown = jnp.take(leaf, layers, axis=0)
        if not declaration.writes_stream or not zeroed.any():
            return grown
        return jnp.where(zeroed.reshape(-1, *[1] * (leaf.ndim - 1)), 0, grown)

    def grow(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
        return {path: grow_leaf(leaf, declarations[path]) for path, leaf in leaves.items()}

    grown = jax.jit(grow, out_shardings=flatten(shardings))(flatten(source_params))
    return unflatten(grown)
