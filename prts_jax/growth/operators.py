"""Growth operators by name, and the options that a config or a command line gives them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.config import GrowthConfig, ModelConfig, nearest
from prts_jax.errors import UserError
from prts_jax.growth import depth
from prts_jax.growth.map import GrowthMap

Make = Callable[[ModelConfig, ModelConfig | None, Mapping[str, Any]], GrowthMap]
"""(source, target or None to make it from the source, options) → map with the grown model."""


@dataclass(frozen=True)
class Operator:
    """A growth operator: the function that makes its maps, and the options it takes.

    Attributes:
      make: see `Make`; its docstring has the equation.
      options: keys of `GrowthConfig` that it takes.
    """

    make: Make
    options: tuple[str, ...]


OPERATORS: dict[str, Operator] = {
    "stack": Operator(depth.stack, ("factor",)),
    "layers": Operator(depth.index_list, ("layers",)),
    "interpolate": Operator(depth.interpolate, ("factor",)),
    "solar": Operator(depth.solar, ("drop",)),
    "block_expansion": Operator(depth.block_expansion, ("every",)),
    "middle": Operator(depth.middle, ("block",)),
    "last": Operator(depth.last, ("block",)),
    "zero": Operator(depth.zero, ("factor", "order")),
}


def make_map(
    source: ModelConfig,
    target: ModelConfig | None,
    operator: str,
    factor: int = 0,
    layers: str = "",
    **options: Any,
) -> GrowthMap:
    """Makes the growth map that a config's `init.growth` or `prts grow` asks for.

    Args:
      source: the model that is grown: the checkpoint's own.
      target: the model it becomes; None makes it from the source.
      operator: a name in `OPERATORS`.
      factor: copies of the source; 0 takes it from the target.
      layers: list of layers in the notation of `depth.parse_layers`, for "layers".
      **options: the other keys of `GrowthConfig`; a default counts as not given.

    Raises:
      UserError: an unknown operator, an option that it does not take, or a growth that cannot be.
    """
    if operator not in OPERATORS:
        raise UserError(f"growth.operator: {operator!r} is unknown; {nearest(operator, OPERATORS)}")
    defaults = dataclasses.asdict(GrowthConfig())
    options |= {"factor": factor, "layers": layers}
    given = {name: value for name, value in options.items() if value != defaults[name]}
    for name, value in given.items():
        if name not in OPERATORS[operator].options:
            raise UserError(
                f"growth.{name}: is {value!r}, but the operator {operator!r} takes no {name}; "
                "leave it out or choose another operator"
            )
    return OPERATORS[operator].make(source, target, given)
