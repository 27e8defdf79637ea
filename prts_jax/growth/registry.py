"""The registry of growth operators: each states its name, options and help where it is defined."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.config import ModelConfig
from prts_jax.growth.map import GrowthMap

# Help of options that several operators take.
FACTOR = "copies of the source's layers"
BLOCK = "layers of the block that is copied"
ORDER = "'interleave' puts new layers after their originals, 'stack' on top"
SEED = "of everything drawn"
GATE_STEPS = (
    "steps in which the gate of a new layer or unit opens, shut at growth; 0: open at once, not "
    "function preserving"
)
WIDTHS = "new sizes, as 'embed=2048,mlp=5632,heads=32,kv_heads=32'"
NORM = "'exact' or 'paper', the paper's formula, which is not function preserving"

Make = Callable[[ModelConfig, ModelConfig | None, Mapping[str, Any]], GrowthMap]
"""(source, target or None to make it from the source, options) → map with the grown model."""


@dataclass(frozen=True)
class Operator:
    """A growth operator.

    Attributes:
      name: as configs and command lines write it.
      make: makes its maps; its docstring has the equation.
      options: option → help. An option that is no key of `prts_jax.config.GrowthConfig` is given in
        `init.growth.options` as text.
    """

    name: str
    make: Make
    options: Mapping[str, str]


OPERATORS: dict[str, Operator] = {}
"""Name → operator, in the order of their definition."""


def operator(name: str, **options: str) -> Callable[[Make], Make]:
    """Registers the decorated function as an operator, of this package or of another.

    Args:
      name: of the operator.
      **options: option → help.

    >>> @operator("mirror", quiet="layers with zero outputs on top")
    ... def mirror(source, target, options): ...
    >>> OPERATORS.pop("mirror").options
    {'quiet': 'layers with zero outputs on top'}
    """

    def register(make: Make) -> Make:
        OPERATORS[name] = Operator(name, make, options)
        return make

    return register


def option_help(option: str) -> str:
    """Returns the help of an option, by operator: "stack, zero: copies of the layers; …"."""
    users: dict[str, list[str]] = {}
    for known in OPERATORS.values():
        if option in known.options:
            users.setdefault(known.options[option], []).append(known.name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in users.items())
