"""Growth of an optimizer's state: each moment goes through the recipe of its parameter.

Leaves are told apart by their paths alone ("1/mu/layers/mlp/up"), so this knows no optimizer
library, and a state on disk grows like one in memory. `prts_jax.growth.moments` has the arithmetic.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.growth.leaf import grow_leaf
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.recipe import moment_recipe
from prts_jax.tree import named_leaves, parameter_of

POWERS: Mapping[str, int] = {
    "mu": 1,
    "trace": 1,
    "acc_grads": 1,
    "nu": 2,
    "nu_max": 2,
    "sum_of_squares": 2,
}
"""Field of an optimizer's state → power of the gradient that it averages or sums (optax's)."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """A leaf that holds the gradient of a parameter, to a power."""

    parameter: str
    power: int


KEPT = "kept"
"""A count of what the moments beside it hold: it stays, as bias correction divides by it."""

SCHEDULE = "schedule"
"""A count that drives a schedule."""

FRESH = "fresh"
"""A value that the config sets, such as an injected learning rate."""

Role = Moment | str


def roles(leaves: Mapping[str, Any], declarations: Mapping[str, Declaration]) -> dict[str, Role]:
    """Says what each leaf of an optimizer's state is: `Moment`, `KEPT`, `SCHEDULE` or `FRESH`.

    The declarations are of the parameters that the state belongs to.

    Raises:
      UserError: a leaf that is none of these, such as a factored moment.
    """
    leaf_roles: dict[str, Role] = {}
    for path, leaf in leaves.items():
        parameter = parameter_of(path, declarations)
        if parameter is not None:
            leaf_roles[path] = _moment(path, leaf, parameter, declarations[parameter])
    holders = {
        path.removesuffix(role.parameter).rstrip("/").rpartition("/")[0]
        for path, role in leaf_roles.items()
        if isinstance(role, Moment)
    }
    for path, leaf in leaves.items():
        if path not in leaf_roles:
            leaf_roles[path] = _scalar_role(path, leaf, holders)
    return {path: leaf_roles[path] for path in leaves}


def check_copies(growth_map: GrowthMap) -> None:
    """Refuses maps that a moment cannot follow: squares do not go through sums of layers.

    Raises:
      UserError: the map has dense matrices.
    """
    if growth_map.matrices is not None:
        raise UserError(
            f"growth.optimizer: {growth_map.operator!r} makes layers that are sums of layers, "
            "which second moments cannot follow; use 'reset'"
        )


def grow_optimizer(
    state: Any,
    growth_map: GrowthMap,
    declarations: Mapping[str, Declaration],
    init: Callable[[Any], Any],
    params: Any,
    shardings: Any,
    policy: str = "copy",
) -> Any:
    """Grows an optimizer's state where it lives, in one jitted function.

    Args:
      state: the source's: any tree that `init` made for the source's parameters and that went on
        from there (optax: adamw, chains, masks, MultiSteps, inject_hyperparams).
      growth_map: what became of the parameters.
      declarations: path → declaration in the target model.
      init: makes a fresh state from parameters (`optax.GradientTransformation.init`); fixes the
        structure, shapes and dtypes of what is returned.
      params: the grown parameters, nested.
      shardings: of the grown state, in its own structure; None leaves them to the compiler.
      policy: "copy" sets counts that drive a schedule to zero, "keep" and "asymmetric" keep them;
        "asymmetric" also starts the moments of new entries from zero, those of further copies too.
        Counts beside moments are kept with them.

    Returns:
      The grown state.

    Raises:
      UserError: a leaf or a map that cannot be grown (see `roles` and `check_copies`), or another
        tree or shape than growth of the source's state gives.
    """
    check_copies(growth_map)
    abstract = jax.eval_shape(init, params)
    wanted, source = named_leaves(abstract), named_leaves(state)
    leaf_roles = roles(wanted, declarations)
    _check(source, wanted, leaf_roles, growth_map, declarations)
    structure = jax.tree.structure(abstract)

    def grow(source: dict[str, Any], params: Any) -> Any:
        fresh = named_leaves(init(params))

        def leaf(path: str) -> Any:
            role = leaf_roles[path]
            if isinstance(role, Moment):
                if path not in source:  # of a source without layers
                    return fresh[path]
                declaration = dataclasses.replace(
                    declarations[role.parameter], dtype=wanted[path].dtype.name
                )
                recipe = moment_recipe(
                    growth_map, path, role.parameter, declaration, role.power, policy
                )
                return grow_leaf(recipe, growth_map, source[path]).astype(wanted[path].dtype)
            kept = role == KEPT or (role == SCHEDULE and policy != "copy")
            return source[path] if kept else fresh[path]

        return jax.tree.unflatten(structure, [leaf(path) for path in wanted])

    return jax.jit(grow, out_shardings=shardings)(source, params)


def _moment(path: str, leaf: Any, parameter: str, declaration: Declaration) -> Moment:
    field = path.removesuffix(f"/{parameter}").rpartition("/")[2]
    if field not in POWERS:
        raise _cannot(
            path, f"{field!r} is no known power of the gradient (Adafactor's is factored)"
        )
    if tuple(leaf.shape) != declaration.shape:
        raise _cannot(
            path, f"has shape {tuple(leaf.shape)}, not its parameter's {declaration.shape}"
        )
    return Moment(parameter, POWERS[field])


def _scalar_role(path: str, leaf: Any, holders: set[str]) -> str:
    parent, _, name = path.rpartition("/")
    if "hyperparams" in path.split("/"):
        return FRESH
    if leaf.shape == () and jnp.issubdtype(leaf.dtype, jnp.integer):
        if parent in holders:
            return KEPT
        if name == "count":
            return SCHEDULE
    raise _cannot(path, "is neither a moment of a parameter nor a count")


def _check(
    source: Mapping[str, Any],
    wanted: Mapping[str, Any],
    leaf_roles: Mapping[str, Role],
    growth_map: GrowthMap,
    declarations: Mapping[str, Declaration],
) -> None:
    """Compares the source's state with the one that must come out of it."""
    for path in sorted(source.keys() - wanted.keys()):
        raise _cannot(path, "is in the source's state but not in the grown one's")
    for path in wanted:
        role = leaf_roles[path]
        if path not in source:
            if isinstance(role, Moment) and growth_map.source.layers == 0:
                continue
            raise _cannot(path, "is in the grown state but not in the source's")
        expected = tuple(wanted[path].shape)
        if isinstance(role, Moment):
            expected = _source_shape(growth_map, declarations[role.parameter])
        if tuple(source[path].shape) != expected:
            raise _cannot(
                path, f"has shape {tuple(source[path].shape)} in the source, not {expected}"
            )


def _source_shape(growth_map: GrowthMap, declaration: Declaration) -> tuple[int, ...]:
    """Returns the shape in the source of a parameter declared in the target."""
    sizes = {"layers": growth_map.source.layers} | {
        axis: getattr(growth_map.source, axis) for axis in growth_map.widths
    }
    return tuple(
        sizes.get(axis, size)
        for axis, size in zip(declaration.axes, declaration.shape, strict=True)
    )


def _cannot(path: str, reason: str) -> UserError:
    return UserError(
        f"growth.optimizer: {path}: {reason}; it cannot be copied through growth, use 'reset'"
    )
