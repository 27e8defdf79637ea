"""Growth operators by name."""

from collections.abc import Callable, Mapping
from typing import Any

from prts_jax.config import ModelConfig, nearest
from prts_jax.errors import UserError
from prts_jax.growth import depth
from prts_jax.growth.map import GrowthMap

Operator = Callable[[ModelConfig, ModelConfig | None, Mapping[str, Any]], GrowthMap]
"""(source, target or None to make it from the source, options) → map with the grown model."""

OPERATORS: dict[str, Operator] = {"stack": depth.stack, "layers": depth.index_list}

_OPTIONS = {"stack": ("factor",), "layers": ("layers",)}


def make_map(
    source: ModelConfig, target: ModelConfig | None, operator: str, factor: int, layers: str
) -> GrowthMap:
    """Makes the growth map that a config's `init.growth` or `prts grow` asks for.

    Args:
      source: the model that is grown: the checkpoint's own.
      target: the model it becomes; None makes it from the source.
      operator: a name in `OPERATORS`.
      factor: copies of the source, for "stack"; 0 takes it from the target.
      layers: list of layers in the notation of `depth.parse_layers`, for "layers".

    Raises:
      UserError: an unknown operator, an option that it does not take, or a growth that cannot be.
    """
    if operator not in OPERATORS:
        raise UserError(f"growth.operator: {operator!r} is unknown; {nearest(operator, OPERATORS)}")
    given = {name: value for name, value in (("factor", factor), ("layers", layers)) if value}
    for name, value in given.items():
        if name not in _OPTIONS[operator]:
            raise UserError(
                f"growth.{name}: is {value!r}, but the operator {operator!r} takes no {name}; "
                "leave it out or choose another operator"
            )
    return OPERATORS[operator](source, target, given)
