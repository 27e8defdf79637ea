"""Config dataclasses from nested mappings, and back; an unknown key names the nearest one."""

import dataclasses
import difflib
import math
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import ml_collections

from prts_jax.config.schema import RunConfig, Stage
from prts_jax.errors import UserError

Section = TypeVar("Section")


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config dataclass as nested plain dictionaries and lists, as JSON would hold it."""

    def plain(items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {name: list(value) if isinstance(value, tuple) else value for name, value in items}

    return dataclasses.asdict(config, dict_factory=plain)


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Returns "; did you mean 'x'?" for the known name most like `name`, or what is known."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"


def from_dict(section: type[Section], values: Mapping[str, Any], where: str = "") -> Section:
    """Builds a config dataclass from nested mappings; keys left out keep their defaults.

    Args:
      section: one of the dataclasses of this module.
      values: nested mappings (a ConfigDict, or what `to_dict` returned).
      where: path of `section` in the whole config ("model"), for messages.

    Raises:
      UserError: an unknown key (names the nearest) or a value of the wrong type.
    """
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise UserError(f"{_dotted('config', where)}: is {values!r}; expected a section with keys")
    hints = typing.get_type_hints(section)
    unknown = [key for key in values if key not in hints]
    if unknown:
        key = _dotted("config", where, unknown[0])
        raise UserError(f"{key}: no such key; {nearest(unknown[0], hints)}")
    return section(**{key: _typed(values[key], hints[key], _dotted(where, key)) for key in values})


def _dotted(*names: str) -> str:
    return ".".join(filter(None, names))


def _typed(value: Any, kind: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return from_dict(typing.cast(type, kind), value, where)
    if kind == tuple[Stage, ...]:
        return _stages(value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"config.{where}: is {value}; it must be a finite number")
    if type(value) is not kind:
        raise UserError(
            f"config.{where}: {value!r} is of type {type(value).__name__}; expected {kind.__name__}"
        )
    return value


def _stages(value: Any, where: str) -> tuple[Stage, ...]:
    """Reads a list of stages; what they change is checked by `prts_jax.config.stages`."""
    if not isinstance(value, list | tuple):
        raise UserError(f"config.{where}: is {value!r}; expected a list of stages")
    for at, stage in enumerate(value):
        if not isinstance(stage, Mapping | ml_collections.ConfigDict):
            raise UserError(f"config.{where}[{at}]: is {stage!r}; expected a section with keys")
    return tuple(Stage(_plain(stage)) for stage in value)


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    nested = (Mapping, ml_collections.ConfigDict)
    return {
        name: _plain(value) if isinstance(value, nested) else value
        for name, value in values.items()
    }


def get(config: RunConfig, key: str) -> Any:
    """Returns the value under a dotted key ("init.growth.operator")."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
