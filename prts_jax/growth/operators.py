"""Growth operators by name, and the options that a config or a command line gives them."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.config import GrowthConfig, ModelConfig, nearest, third_party_operators
from prts_jax.errors import UserError, first_line
from prts_jax.growth import depth, learned, width
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
    "random": Operator(depth.random, ("factor", "order", "seed", "gate_steps")),
    "split": Operator(width.split, ("widths", "factor", "weights", "pair_noise", "seed", "norm")),
    "zero_width": Operator(width.zero_width, ("widths", "factor", "seed", "norm")),
    "random_width": Operator(
        width.random_width, ("widths", "factor", "seed", "norm", "gate_steps")
    ),
    "learned": Operator(
        learned.learned, ("factor", "widths", "learn_steps", "learn_rate", "matrices")
    ),
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
      operator: a name in `OPERATORS`, or of an installed package's entry point in the group
        `prts_jax.config.OPERATOR_GROUP`: a `Make`, given all options that are not defaults.
      factor: copies of the source; 0 takes it from the target.
      layers: list of layers in the notation of `notation.parse_layers`, for "layers".
      **options: the other keys of `GrowthConfig`; a default counts as not given.

    Raises:
      UserError: an unknown operator, an option that it does not take, or a growth that cannot be.
    """
    defaults = dataclasses.asdict(GrowthConfig())
    options |= {"factor": factor, "layers": layers}
    given = {name: value for name, value in options.items() if value != defaults[name]}
    # A map says nothing of the optimizer: the executors do.
    copies_moments = given.pop("optimizer", "reset") == "copy"
    noise = given.pop("noise", 0.0)
    taken = {name: value for name, value in given.items() if not (noise and name == "seed")}
    if operator in OPERATORS:
        known = OPERATORS[operator]
        for name, value in taken.items():
            if name not in known.options:
                raise UserError(
                    f"growth.{name}: is {value!r}, but the operator {operator!r} takes no {name}; "
                    "leave it out or choose another operator"
                )
        made = known.make(source, target, given)
    else:
        given |= _parse_options(given.pop("options", ""))
        made = _third_party(operator)(source, target, given)
        if not isinstance(made, GrowthMap):
            raise UserError(f"growth.operator: {operator!r} returns {made!r}, not a GrowthMap")
    if noise:
        made = dataclasses.replace(made, noise=noise, seed=given.get("seed", made.seed))
    made.validate()
    if copies_moments and made.matrices is not None:
        raise UserError(
            f"growth.optimizer: is 'copy', but {operator!r} mixes layers, and moments of mixed "
            "gradients are not known; use 'reset'"
        )
    return made


def _third_party(operator: str) -> Make:
    """Loads an operator that an installed package names among its entry points."""
    found = third_party_operators()
    if operator not in found:
        names = (*OPERATORS, *found)
        raise UserError(f"growth.operator: {operator!r} is unknown; {nearest(operator, names)}")
    try:
        made: Make = found[operator].load()
    except Exception as error:  # whatever a foreign module raises while it is imported
        raise UserError(
            f"growth.operator: {operator!r} cannot be loaded from {found[operator].value} "
            f"({type(error).__name__}: {first_line(error)}); "
            "mend or remove its package"
        ) from error
    return made


def _parse_options(text: str) -> dict[str, str]:
    """Reads "name=value,name=value"; what the values mean is the operator's to say."""
    options = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(f"growth.options: {item!r}; write name=value,name=value")
        options[name.strip()] = value.strip()
    return options
