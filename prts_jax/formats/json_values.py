"""Typed access to the values of a parsed JSON or YAML file."""

import math
from collections.abc import Mapping
from typing import Any

from prts_jax.errors import UserError


class JsonValues:
    """Values of a file by key, each of the type that its reader expects; true is no number.

    A null is an absent key where `may_be_null` has it. Each reader raises a UserError if the value
    has another type, or is absent without a default.
    """

    def __init__(
        self, values: Mapping[str, Any], where: str, may_be_null: tuple[str, ...] = ()
    ) -> None:
        self._values, self._where, self._may_be_null = values, where, may_be_null

    def integer(self, key: str, default: int | None = None) -> int:
        """Returns an integer."""
        return int(self._get(key, default, (int,), "an integer"))

    def number(self, key: str, default: float | None = None) -> float:
        """Returns a finite number."""
        value = self._get(key, default, (int, float), "a number")
        if not math.isfinite(value):
            raise UserError(f"{self._where}: {key} is {value}; it must be a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Returns true or false."""
        return bool(self._get(key, default, (bool,), "true or false"))

    def _get(self, key: str, default: Any, kinds: tuple[type, ...], expected: str) -> Any:
        value = self._values.get(key, default)
        if value is None and key in self._may_be_null:
            value = default
        if type(value) not in kinds:  # isinstance would take true for 1
            raise UserError(f"{self._where}: {key} is {value!r:.80}; it must be {expected}")
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise UserError(f"{self._where}: {key} is beyond all reason")
        return value


_LARGEST = 1 << 62
"""Larger integers overflow in arithmetic with floats and array shapes."""
