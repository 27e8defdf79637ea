"""The recipes of an optimizer's state on disk: a moment is grown as its parameter is."""

import dataclasses

from prts_jax.checkpoint import arrays
from prts_jax.checkpoint.layout import OPTIMIZER
from prts_jax.config import CHOICES, nearest
from prts_jax.declaration import Declaration, Kind
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.optimizer import KEPT, Moment, check_copies, roles
from prts_jax.growth.recipe import LayerRecipe, LeafRecipe, Make, moment_recipe
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path

POLICIES = CHOICES["init.growth.optimizer"]


def optimizer_recipes(
    source: str, growth_map: GrowthMap, policy: str = "copy"
) -> tuple[LeafRecipe, ...]:
    """Returns the recipe of every leaf of a checkpoint's optimizer state; none for "reset".

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      growth_map: a valid map from the checkpoint's model.
      policy: "reset", "copy", "keep" (the same on disk) or "asymmetric".

    Raises:
      UserError: an unknown policy, there is no such state, or it or the map cannot be grown (names
        the leaf).
    """
    if policy not in POLICIES:
        raise UserError(f"growth.optimizer: {policy!r} is unknown; {nearest(policy, POLICIES)}")
    if policy == "reset":
        return ()
    if not as_path(f"{source}/{OPTIMIZER}").exists():
        raise UserError(
            f"{source}: holds no optimizer state to copy; leave --optimizer={policy} out, or "
            "name a checkpoint that a run has saved"
        )
    if growth_map.source.layers == 0:
        raise UserError(
            f"{source}: a model without layers has no moments of them; use --optimizer=reset"
        )
    check_copies(growth_map)
    stored = arrays.describe(source, OPTIMIZER)
    targets = declare(growth_map.target)
    recipes = []
    for path, role in roles(stored, declare(growth_map.source)).items():
        dtype = stored[path].dtype.name
        if isinstance(role, Moment):
            target = dataclasses.replace(targets[role.parameter], dtype=dtype)
            recipes.append(
                moment_recipe(growth_map, path, role.parameter, target, role.power, policy)
            )
        elif role == KEPT:
            count = Declaration((), dtype, (), (), "ones", Kind.NORM)
            recipes.append(LeafRecipe(path, path, count, (LayerRecipe(Make.COPY, 0),), True))
        else:
            raise UserError(
                f"{source}: {path}: depends on the config of the run to come; use "
                "--optimizer=reset, or grow in the run with config.init.grow_from"
            )
    return tuple(recipes)
