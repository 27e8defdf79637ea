"""Growth on the mesh: source parameters become the target's without a file in between."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.declaration import Declaration
from prts_jax.growth import dense
from prts_jax.growth.leaf import fresh_layers, grow_layers
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Arrays
from prts_jax.growth.widening import NEW
from prts_jax.tree import flatten, unflatten


def grow_params(
    source_params: Mapping[str, Any],
    growth_map: GrowthMap,
    declarations: Mapping[str, Declaration],
    shardings: Mapping[str, Any],
) -> dict[str, Any]:
    """Grows parameters where they live, in one jitted function.

    While no axis that grows is sharded this needs no collective: each device copies its own part.
    Memory at its peak is the source's and the target's together.

    Args:
      source_params: nested dict of arrays on the target's mesh, `[layers, …]` where stacked.
      growth_map: what becomes of them.
      declarations: path → declaration in the target model.
      shardings: nested dict of the target's shardings, one for each leaf.

    Returns:
      Nested dict of the target's arrays, see `prts_jax.growth.leaf.grow_layers`.

    Raises:
      UserError: the matrices of a dense map are missing or of other models.
    """

    def grow(leaves: dict[str, jax.Array], arrays: Arrays) -> dict[str, jax.Array]:
        return grow_leaves(leaves, growth_map, declarations, arrays)

    arrays = dict(dense.arrays_of(growth_map, declarations))
    grown = jax.jit(grow, out_shardings=flatten(shardings))(flatten(source_params), arrays)
    return unflatten(grown)


def grow_leaves(
    leaves: Mapping[str, jax.Array],
    growth_map: GrowthMap,
    declarations: Mapping[str, Declaration],
    arrays: Arrays,
) -> dict[str, jax.Array]:
    """Grows the leaves of a model: a pure function, linear in the source and in each matrix.

    Args:
      leaves: path → source array, `[layers, …]` where stacked.
      growth_map: what becomes of them.
      declarations: path → declaration in the target model.
      arrays: the matrices of a dense map, see `prts_jax.growth.dense.arrays_of`.

    Returns:
      path → target array.
    """
    layers = np.asarray(growth_map.layers, np.int32)
    zeroed = np.isin(np.arange(len(layers)), growth_map.zeroed)
    is_new = layers == NEW

    def grow_leaf(path: str) -> jax.Array:
        declaration = declarations[path]
        if not declaration.stacked:
            only = jnp.zeros(1, jnp.int32)
            return grow_layers(leaves[path][None], growth_map, path, declaration, only, arrays)[0]
        targets = jnp.arange(len(layers), dtype=jnp.int32)
        where = (-1, *[1] * (len(declaration.shape) - 1))
        if is_new.all():  # a source without layers has none of their leaves
            grown = fresh_layers(growth_map, path, declaration, targets)
        else:
            if growth_map.matrices is not None:
                copied = dense.mix_layers(arrays[dense.depth_name(path)], leaves[path])
            else:
                copied = jnp.take(leaves[path], np.maximum(layers, 0), axis=0)
            grown = grow_layers(copied, growth_map, path, declaration, targets, arrays)
            if is_new.any():
                fresh = fresh_layers(growth_map, path, declaration, targets)
                grown = jnp.where(is_new.reshape(where), fresh, grown)
        if declaration.writes_stream and zeroed.any():
            grown = jnp.where(zeroed.reshape(where), 0, grown)
        return grown

    return {path: grow_leaf(path) for path in declarations}
