"""Lists of source layers as text: the paper's notation, and ranges."""

import re

from prts_jax.config import MAX_LAYERS
from prts_jax.errors import UserError

_GROUP = re.compile(r"([0-9]+)(?:\*([0-9]{1,5}))?", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,5})(?::([0-9]{1,5}))?", re.ASCII)


def parse_layers(notation: str, source_layers: int) -> tuple[int, ...]:
    """Reads a list of source layers: the zero-based source layer for each target layer.

    Two notations are known. The paper's (App. H) is one-based, writes layers as single digits and
    groups with `-`, and `*` repeats the group before it: "1-234*7-56" is layer 1, seven times 2, 3,
    4, then 5, 6. It needs a source of at most 9 layers. The other, told by its `:` or `,`, is
    zero-based: half-open ranges and single layers, "0:24,8:32" or "0,0,1,1,2,2".

    Raises:
      UserError: text in neither notation, a layer beyond the source, an empty range, or more than
        `MAX_LAYERS` layers.
    """
    text = notation.strip()
    if ":" in text or "," in text:
        layers = _parse_ranges(text)
        first, last = 0, source_layers - 1
    else:
        layers = _parse_groups(text, source_layers)
        first, last = 1, source_layers
    for layer in layers:
        if not 0 <= layer < source_layers:
            raise _unreadable(
                text, f"layer {layer + first} is none of the source's layers {first} to {last}"
            )
    return layers


def _parse_groups(text: str, source_layers: int) -> tuple[int, ...]:
    if source_layers > 9:
        raise _unreadable(
            text,
            f"this notation writes layers as one digit and the source has {source_layers}; "
            "use zero-based ranges such as 0:24,8:32",
        )
    layers: list[int] = []
    for group in text.split("-"):
        match = _GROUP.fullmatch(group)
        if match is None:
            raise _unreadable(text, f"{group!r} is no group such as 234 or 234*7")
        digits, times = match.group(1), int(match.group(2) or 1)
        if times < 1:
            raise _unreadable(text, f"{group!r} repeats no times")
        _check_length(text, len(layers) + len(digits) * times)
        layers += [int(digit) - 1 for digit in digits] * times
    return tuple(layers)


def _parse_ranges(text: str) -> tuple[int, ...]:
    layers: list[int] = []
    for item in text.split(","):
        match = _RANGE.fullmatch(item.strip())
        if match is None:
            raise _unreadable(text, f"{item!r} is neither a range such as 0:24 nor a layer")
        start = int(match.group(1))
        stop = start + 1 if match.group(2) is None else int(match.group(2))
        if stop <= start:
            raise _unreadable(text, f"the range {item.strip()!r} is empty")
        _check_length(text, len(layers) + stop - start)
        layers += range(start, stop)
    return tuple(layers)


def _check_length(text: str, length: int) -> None:
    if length > MAX_LAYERS:
        raise _unreadable(text, f"it makes more than {MAX_LAYERS} layers")


def _unreadable(text: str, reason: str) -> UserError:
    shown = text if len(text) <= 60 else text[:57] + "…"
    return UserError(
        f"growth.layers: {shown!r}: {reason.rstrip()}; write '1-234*7-56' (one-based) or "
        "'0:24,8:32' (zero-based)"
    )
