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
    """Grows parameters where they live, in one jitted function; dtypes stay the source's.

    While no axis that grows is sharded this needs no collective: each device copies its own part.
    Memory at its peak is the source's and the target's together. The source's arrays, nested, are
    on the target's mesh, `[layers, …]` where stacked; `declarations` and `shardings` are the
    target's.

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
    """Returns the jitted function (path → source array, name → matrix) → path → grown array."""

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

    Arrays are `[layers, …]` where stacked; a source without layers may lack the leaves that have
    some. `arrays` are the matrices of a dense map, see `prts_jax.growth.dense.arrays_of`.
    """
    return {
        path: grow_leaf(recipe, growth_map, leaves.get(path), arrays)
        for path, recipe in recipes(growth_map, declarations).items()
    }
