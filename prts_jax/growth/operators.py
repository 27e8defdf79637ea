"""Growth operators by name, as configs and command lines ask for them."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

from prts_jax.config import GrowthConfig, ModelConfig, nearest, third_party_operators
from prts_jax.errors import UserError, first_line
from prts_jax.growth import depth, learned, width
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operator import Operator
from prts_jax.growth.optimizer import check_copies
from prts_jax.growth.recipe import refuse_norms
from prts_jax.model.architecture import declare

OPERATORS: dict[str, Operator] = {
    value.name: value
    for module in (depth, width, learned)
    for value in vars(module).values()
    if isinstance(value, Operator)
}
"""Name → operator of this package, in the order of their definition."""


def draws(operator: str) -> bool:
    """Returns whether an operator takes a seed; a third party's that lists no options may."""
    options = find(operator).options
    return options is None or "seed" in options


def make_map(
    source: ModelConfig,
    target: ModelConfig | None,
    operator: str,
    factor: int = 0,
    layers: str = "",
    inherited: Collection[str] = (),
    **options: Any,
) -> GrowthMap:
    """Makes the growth map that a config's `init.growth` or `prts grow` asks for.

    The operator is one of `OPERATORS`, or the name of an installed package's entry point in the
    group `prts_jax.config.OPERATOR_GROUP`. Options are the keys of `GrowthConfig`; a default counts
    as not given. Those that are `inherited`, which a stage leaves to the whole run, are ignored
    where the operator does not take them.

    Raises:
      UserError: an unknown operator, an option that it does not take and that is not inherited, or
        a growth that the models do not allow.
    """
    defaults = dataclasses.asdict(GrowthConfig())
    options |= {"factor": factor, "layers": layers}
    given = {name: value for name, value in options.items() if value != defaults[name]}
    # Not an operator's: what becomes of the optimizer, and noise over any map.
    copies_moments = given.pop("optimizer", "reset") != "reset"
    for name in ("new_rate", "new_rate_steps"):
        given.pop(name, None)
    noise = given.pop("noise", 0.0)
    own = _parse_options(given.pop("options", ""))
    known = find(operator)
    if known.options is not None:
        takes = {*known.options, "seed"} if noise else {*known.options}
        given = {name: given[name] for name in given if name in takes or name not in inherited}
        if "options" in inherited:
            own = {name: own[name] for name in own if name in takes or name in defaults}
        _check_options(operator, takes, given, own, defaults)
    given |= own
    for name, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"growth.{name}: is {value}; it must be a finite number")
    growth_map = known(source, target, given)
    if not isinstance(growth_map, GrowthMap):
        raise UserError(f"growth.operator: {operator!r} returns {growth_map!r}, not a GrowthMap")
    if noise:
        seed = given.get("seed", growth_map.seed)
        growth_map = dataclasses.replace(growth_map, noise=noise, seed=seed)
    growth_map.validate()
    if growth_map.widths:
        refuse_norms(growth_map, declare(growth_map.target))
    if copies_moments:
        check_copies(growth_map)
    return growth_map


def _check_options(
    operator: str,
    known: Collection[str],
    given: Mapping[str, Any],
    own: Mapping[str, str],
    keys: Mapping[str, Any],
) -> None:
    """Refuses options that an operator does not take, and keys of the config given as text.

    `known` are those that it takes, `given` keys of the config that are set, `own` options given as
    text.
    """
    for name in own:
        if name in keys:
            raise UserError(
                f"growth.options: {name} has a key of its own; give growth.{name} instead"
            )
    for name, value in {**given, **own}.items():
        if name not in known:
            raise UserError(
                f"growth.{name}: is {value!r}, but the operator {operator!r} takes no {name}; "
                "leave it out or choose another operator"
            )


def find(name: str) -> Operator:
    """Returns an operator of this package or of an installed one.

    A package's entry point names an `Operator`, or a bare function, which takes every option.

    Raises:
      UserError: an unknown name (names the nearest), or a package that cannot be loaded.
    """
    if name in OPERATORS:
        return OPERATORS[name]
    entry_points = third_party_operators()
    if name not in entry_points:
        names = (*OPERATORS, *entry_points)
        raise UserError(f"growth.operator: {name!r} is unknown; {nearest(name, names)}")
    try:
        loaded = entry_points[name].load()
    except Exception as error:  # whatever a foreign module raises while it is imported
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(
            f"growth.operator: {name!r} cannot be loaded from {entry_points[name].value} "
            f"({reason}); repair or remove its package"
        ) from error
    return loaded if isinstance(loaded, Operator) else Operator(name, loaded, None)


def _parse_options(text: str) -> dict[str, str]:
    """Reads "name=value,name=value"; what the values mean is the operator's to say."""
    options = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, value = item.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(f"growth.options: {item!r}; write name=value,name=value")
        options[name.strip()] = value.strip()
    return options


def option_help(option: str) -> str:
    """Returns the help of an option, by operator: "stack, zero: copies of the layers; …"."""
    users: dict[str, list[str]] = {}
    for known in OPERATORS.values():
        if text := (known.options or {}).get(option):
            users.setdefault(text, []).append(known.name)
    return "; ".join(f"{', '.join(names)}: {text}" for text, names in users.items())
