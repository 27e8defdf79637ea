"""The recipe of a growth: for every leaf and target layer, what the layer is made of.

All executors read it: on the mesh, streaming, by reference, and for the optimizer's moments.
"""

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from prts_jax.declaration import STREAM, Declaration, Kind
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.widening import NEW


class Make(enum.StrEnum):
    """The ways in which a target layer of a leaf is made."""

    COPY = "copy"
    """From one source layer, then widened and mixed with noise where the map says so."""
    ZERO = "zero"
    FRESH = "fresh"
    """From the initialiser; of an optimizer's moment there is none."""
    MIXTURE = "mixture"
    """From all source layers, by a row of the leaf's matrix D (`prts_jax.growth.dense`)."""


class LayerRecipe(NamedTuple):
    """The recipe of one target layer of a leaf; `source` is the layer of a copy, else `NEW`."""

    make: Make
    source: int = NEW


class Group(NamedTuple):
    """Target layers of a leaf that are made in the same way of the same source layer."""

    make: Make
    source: int
    targets: tuple[int, ...]


@dataclass(frozen=True)
class LeafRecipe:
    """The recipe of a leaf of the target.

    Attributes:
      parameter: path of the parameter that it is or belongs to; names what is drawn.
      layers: one recipe for each target layer; one for a leaf without layers.
      unchanged: whether copies keep the source's bytes.
      power: of the gradient that a moment holds; 0 for a parameter.
      first_only: of a moment, see `prts_jax.growth.moments.grow_moment`.
    """

    path: str
    parameter: str
    declaration: Declaration
    layers: tuple[LayerRecipe, ...]
    unchanged: bool
    power: int = 0
    first_only: bool = False

    def targets(self, make: Make) -> tuple[int, ...]:
        """Returns the target layers that are made in one way, in rising order."""
        return tuple(at for at, layer in enumerate(self.layers) if layer.make is make)

    def groups(self) -> tuple[Group, ...]:
        """Groups the target layers by source layer; a group of copies reads its source once."""
        groups: dict[LayerRecipe, list[int]] = {}
        for at, layer in enumerate(self.layers):
            groups.setdefault(layer, []).append(at)
        return tuple(Group(*layer, tuple(targets)) for layer, targets in groups.items())


def recipes(
    growth_map: GrowthMap, declarations: Mapping[str, Declaration]
) -> dict[str, LeafRecipe]:
    """Returns the recipe of every parameter.

    Raises:
      UserError: the map widens an axis that a norm's mean square runs over (`refuse_norms`).
    """
    refuse_norms(growth_map, declarations)
    return {path: _parameter(growth_map, path, leaf) for path, leaf in declarations.items()}


def moment_recipe(
    growth_map: GrowthMap,
    path: str,
    parameter: str,
    declaration: Declaration,
    power: int,
    policy: str,
) -> LeafRecipe:
    """Returns the recipe of an optimizer's moment.

    It is the parameter's, but that fresh layers and all leaves of a layer with zero outputs start
    from zero: nothing that such a layer makes reached the source's loss. With the policy
    "asymmetric" all new entries do, also further copies of layers and positions. The declaration is
    the parameter's in the target, with the moment's dtype.
    """
    first_only = policy == "asymmetric"
    zero = LayerRecipe(Make.ZERO)
    layers: tuple[LayerRecipe, ...] = (LayerRecipe(Make.COPY, 0),)
    if declaration.stacked:
        empty = set(growth_map.new_layers() if first_only else growth_map.zeroed)
        layers = tuple(
            zero if layer == NEW or at in empty else LayerRecipe(Make.COPY, layer)
            for at, layer in enumerate(growth_map.layers)
        )
    unchanged = not widens(growth_map, declaration)
    return LeafRecipe(path, parameter, declaration, layers, unchanged, power, first_only)


def refuse_norms(growth_map: GrowthMap, declarations: Mapping[str, Declaration]) -> None:
    """Refuses maps that widen an axis whose mean square a norm other than the stream's divides by.

    The stream's norms have a scale and an epsilon that undo the change (`GrowthMap.norm_scale`);
    the norm of a head has neither.

    Raises:
      UserError: names the norm and the axis.
    """
    for path, leaf in declarations.items():
        axis = leaf.normalizes
        if axis and axis != STREAM and axis in growth_map.widths:
            raise UserError(
                f"growth.widths: {axis} from {getattr(growth_map.source, axis)} to "
                f"{getattr(growth_map.target, axis)}: {path} normalizes {axis}, and no weight "
                "restores its mean square; keep the size, and grow heads and kv_heads instead"
            )


def widens(growth_map: GrowthMap, declaration: Declaration) -> bool:
    """Returns whether a leaf has an axis that widens, or a factor that follows from one."""
    return (
        any(axis in growth_map.widths for axis in declaration.axes)
        or query_key_factor(growth_map, declaration) != 1
    )


def query_key_factor(growth_map: GrowthMap, declaration: Declaration) -> float:
    """Returns the factor of a query or key projection that keeps the attention scores.

    A query head that is k times as wide gets √k, as its scores are divided by √k more. Where a norm
    follows the projection, it sees the target's epsilon: √(eps' / eps) makes up for it, for
    `c q / √(c² mean(q²) + c² eps) = q / √(mean(q²) + eps)`.
    """
    source, target = growth_map.source, growth_map.target
    if declaration.normed:
        return math.sqrt(target.norm_eps / source.norm_eps)
    if declaration.kind is Kind.QUERY and "head_dim" in growth_map.widths:
        return math.sqrt(target.head_dim / source.head_dim)
    return 1.0


def sums_over(declaration: Declaration, axis: str) -> bool:
    """Returns whether copies along an axis are weighted: the parameter sums over it.

    A tied embedding sums over its width too, but what is looked up must be whole copies: there the
    norm before the head carries the weights.
    """
    return axis in declaration.contracts and declaration.kind is not Kind.TABLE


def is_noisy(growth_map: GrowthMap, declaration: Declaration) -> bool:
    """Returns whether the map mixes noise into a leaf: into all but norms."""
    return growth_map.noise > 0 and declaration.kind is not Kind.NORM


def changes(growth_map: GrowthMap, leaves: Mapping[str, LeafRecipe]) -> dict[str, list[str]]:
    """Returns what becomes of the leaves: change → paths; a leaf may be under several."""
    identity = tuple(LayerRecipe(Make.COPY, at) for at in range(growth_map.source.layers))
    named: dict[str, list[str]] = {
        "kept": [],
        "layers copied": [],
        "layers mixed": [],
        "layers drawn": [],
        "outputs zeroed": [],
        "widened": [],
        "noise mixed in": [],
    }
    for path, leaf in leaves.items():
        deepens = leaf.declaration.stacked and leaf.layers != identity
        makes = {layer.make for layer in leaf.layers}
        holds = {
            "kept": leaf.unchanged and not deepens,
            "layers copied": deepens and Make.COPY in makes,
            "layers mixed": Make.MIXTURE in makes,
            "layers drawn": Make.FRESH in makes,
            "outputs zeroed": Make.ZERO in makes,
            "widened": widens(growth_map, leaf.declaration),
            "noise mixed in": is_noisy(growth_map, leaf.declaration),
        }
        for change, applies in holds.items():
            if applies:
                named[change].append(path)
    return {change: paths for change, paths in named.items() if paths}


def _parameter(growth_map: GrowthMap, path: str, declaration: Declaration) -> LeafRecipe:
    layers: tuple[LayerRecipe, ...] = (LayerRecipe(Make.COPY, 0),)
    mixes = growth_map.matrices is not None and declaration.stacked
    if declaration.stacked:
        zeroed = set(growth_map.zeroed) if declaration.writes_stream else set()
        layers = tuple(
            LayerRecipe(Make.ZERO)
            if at in zeroed
            else LayerRecipe(Make.MIXTURE)
            if mixes
            else LayerRecipe(Make.FRESH)
            if layer == NEW
            else LayerRecipe(Make.COPY, layer)
            for at, layer in enumerate(growth_map.layers)
        )
    unchanged = not (mixes or widens(growth_map, declaration) or is_noisy(growth_map, declaration))
    return LeafRecipe(path, path, declaration, layers, unchanged)
