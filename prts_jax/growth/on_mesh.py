"""Growth on the mesh: source parameters become the target's without a file in between."""

from collections.abc import Mapping
from typing import Any

import jax

from prts_jax.declaration import Declaration
from prts_jax.growth import dense
from prts_jax.growth.leaf import grow_leaf
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Arrays
from prts_jax.growth.recipe import recipes
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
      Nested dict of the grown arrays, in the source's dtypes, see `prts_jax.growth.leaf`.

    Raises:
      UserError: the matrices of a dense map are missing or of other models, or the map cannot widen
        a norm exactly.
    """
    arrays = dict(dense.arrays_of(growth_map, declarations))
    step = growth_step(growth_map, declarations, flatten(shardings))
    return unflatten(step(flatten(source_params), arrays))


def growth_step(
    growth_map: GrowthMap, declarations: Mapping[str, Declaration], shardings: Mapping[str, Any]
) -> jax.stages.Wrapped:
    """Returns the jitted function (path → source array, name → matrix) → path → grown array.

    Args:
      growth_map: what becomes of them.
      declarations: path → declaration in the target model.
      shardings: path → sharding in the target model.
    """

    def grow(leaves: dict[str, jax.Array], arrays: Arrays) -> dict[str, jax.Array]:
        return grow_leaves(leaves, growth_map, declarations, arrays)

    return jax.jit(grow, out_shardings=dict(shardings))


def grow_leaves(
    leaves: Mapping[str, jax.Array],
    growth_map: GrowthMap,
    declarations: Mapping[str, Declaration],
    arrays: Arrays,
) -> dict[str, jax.Array]:
    """Grows the leaves of a model: a pure function, linear in the source and in each matrix.

    Args:
      leaves: path → source array, `[layers, …]` where stacked; a source without layers may lack
        the leaves that have some.
      growth_map: what becomes of them.
      declarations: path → declaration in the target model.
      arrays: the matrices of a dense map, see `prts_jax.growth.dense.arrays_of`.

    Returns:
      path → target array.
    """
    return {
        path: grow_leaf(recipe, growth_map, leaves.get(path), arrays)
        for path, recipe in recipes(growth_map, declarations).items()
    }
