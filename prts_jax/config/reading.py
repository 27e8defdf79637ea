"""Conversion between config dataclasses and nested mappings, with checks of keys and types."""

import dataclasses
import difflib
import functools
import sys
import typing
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

import ml_collections

from prts_jax.config.schema import ModelConfig, RunConfig, StageChanges
from prts_jax.errors import UserError

Section = TypeVar("Section")
_NESTED = (Mapping, ml_collections.ConfigDict)


def to_dict(config: Any) -> dict[str, Any]:
    """Returns a config or record dataclass as nested dictionaries and lists for JSON.

    Omits fields that are None by default and still None, and removes a trailing underscore from
    names ("from_"). A nested value with a method `to_json` is converted by it.
    """
    return {
        field.name.rstrip("_"): _as_json(getattr(config, field.name))
        for field in dataclasses.fields(config)
        if field.default is not None or getattr(config, field.name) is not None
    }


def _as_json(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, tuple | list):
        return [_as_json(inner) for inner in value]
    return value


def nearest(name: str, known: typing.Iterable[str]) -> str:
    """Returns "did you mean 'x'?" with the closest known name, or a list of the known names."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"it has {', '.join(known)}"


def from_dict(
    section: type[Section], values: Mapping[str, Any], where: str = "", root: str = "config"
) -> Section:
    """Builds a config or record dataclass from nested mappings; absent keys keep their defaults.

    Fields of the section may be dataclasses, tuples or mappings of them, or None; the values are a
    ConfigDict or a result of `to_dict`. Messages name `where` the section is, such as "model",
    below `root`.

    Raises:
      UserError: a key is unknown (names the closest one) or missing, or a value has the wrong type.
    """
    return _read(section, values, f"{root}.{where}" if where else root)


def _read(section: type[Section], values: Any, where: str) -> Section:
    if not isinstance(values, _NESTED):
        raise UserError(f"{where}: is {values!r}; expected a section with keys")
    hints = _hints(typing.cast(Any, section))
    unknown = [key for key in values if key not in hints]
    if unknown:
        raise UserError(f"{where}.{unknown[0]}: no such key; {nearest(unknown[0], hints)}")
    missing = [
        field.name
        for field in dataclasses.fields(typing.cast(Any, section))
        if field.default is field.default_factory is dataclasses.MISSING
        and field.name.rstrip("_") not in values
    ]
    if missing:
        raise UserError(f"{where}: lacks {', '.join(sorted(missing))}")
    return section(
        **{hints[key][0]: _typed(values[key], hints[key][1], f"{where}.{key}") for key in values}
    )


@functools.cache
def _hints(section: type) -> dict[str, tuple[str, Any]]:
    """Returns the field and the type of each key of a section."""
    types = typing.get_type_hints(section)
    return {name.rstrip("_"): (name, hint) for name, hint in types.items()}


def _typed(value: Any, kind: Any, where: str) -> Any:
    """Returns a value converted to the type of its field, recursively."""
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if type(None) in parts:
        (kind,) = set(parts) - {type(None)}
        return None if value is None else _typed(value, kind, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise UserError(f"{where}: is {value!r}; expected a list")
        return tuple(
            _typed(inner, parts[0], f"{where}[{index}]") for index, inner in enumerate(value)
        )
    if origin in (dict, Mapping) or kind is StageChanges:
        if not isinstance(value, _NESTED):
            raise UserError(f"{where}: is {value!r}; expected a section with keys")
        inner_kind = parts[1] if parts else Any
        values = {key: _typed(value[key], inner_kind, f"{where}.{key}") for key in value}
        return StageChanges(_plain(values)) if kind is StageChanges else values
    if hasattr(kind, "from_json"):
        return kind.from_json(value)
    if dataclasses.is_dataclass(kind):
        return _read(typing.cast(type, kind), value, where)
    if kind is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:
            raise UserError(f"{where}: is {value!r:.80}; it must be a finite number")
        return float(value)
    if type(value) is not kind:
        raise UserError(
            f"{where}: {value!r:.80} is of type {type(value).__name__}; expected {kind.__name__}"
        )
    return value


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Converts nested mappings to dictionaries."""
    return {
        name: _plain(value) if isinstance(value, _NESTED) else value
        for name, value in values.items()
    }


def get(config: RunConfig, key: str) -> Any:
    """Returns the value of a dotted key such as "init.growth.operator"."""
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value


def model_differences(a: ModelConfig, b: ModelConfig) -> Iterator[tuple[str, Any, Any]]:
    """Yields (field, value in a, value in b) for each field that differs between two models."""
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(a, field.name), getattr(b, field.name)
        if ours != theirs:
            yield field.name, ours, theirs
