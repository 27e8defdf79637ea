"""Lengths of a schedule as text: steps, tokens or a share."""

import re

from prts_jax.errors import UserError

_PATTERN = re.compile(r"(\d+(?:\.\d+)?|\.\d+) *([kMBT]?) *(%|steps?|tokens?|)", re.ASCII)
_MOST = 1e18
"""Longest length in steps or tokens."""

_FACTORS = {"": 1.0, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def parse_length(text: str, key: str = "length") -> tuple[float, str]:
    """Reads "2000", "2000 steps", "1.5B tokens" or "10%".

    Returns:
      (number, unit); the unit is "steps", "tokens" or "%".

    Raises:
      UserError: names the key.

    >>> parse_length("1.5B tokens")
    (1500000000.0, 'tokens')
    >>> parse_length("10%")
    (10.0, '%')
    """
    match = _PATTERN.fullmatch(text.strip())
    number = float(match[1]) * _FACTORS[match[2]] if match else 0.0
    unit = (match[3].rstrip("s") + "s" if match[3] != "%" else "%") if match else ""
    if match is None or number > (100 if unit == "%" else _MOST) or (unit == "%" and match[2]):
        raise UserError(
            f"config.{key}: is {text!r}; give steps, tokens or a share, such as '2000 steps', "
            "'1.5B tokens' or '10%'"
        )
    return number, "steps" if unit == "s" else unit
