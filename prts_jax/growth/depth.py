"""Growth in depth by copying layers: G_stack, and any list of layers.

Source: Du et al., "Stacking Your Transformers", arXiv 2405.15319, section 3 and App. A and H.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap

MAX_LAYERS = 10_000
"""Longest list that the notation may describe: beyond it a repeat count is a slip."""

_GROUP = re.compile(r"([0-9]+)(?:\*([0-9]{1,5}))?", re.ASCII)
_RANGE = re.compile(r"([0-9]{1,5})(?::([0-9]{1,5}))?", re.ASCII)


def stack(source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]) -> GrowthMap:
    """G_stack: `M∘M∘…∘M`, g copies of the source on top of each other.

    Target layer i copies source layer `i mod l` (App. A). Not function preserving.

    Args:
      source: model of l layers.
      target: model of g·l layers; None makes it from the source.
      options: {"factor": g}; 0 or absent takes g from the target.

    Raises:
      UserError: no layers, neither target nor factor, or a target that is not g·l layers deep.
    """
    if source.layers < 1:
        raise UserError("growth.source: has no layers to stack; start from a model that has some")
    factor = options.get("factor", 0)
    if not factor and target is None:
        raise UserError("growth.factor: is 0 and no target is given; give factor=4, say")
    if not factor and target is not None:
        factor, rest = divmod(target.layers, source.layers)
        if rest or factor < 1:
            raise UserError(
                f"growth: {target.layers} target layers are no multiple of the source's "
                f"{source.layers}; stack needs one, or use the operator 'layers'"
            )
    if factor < 0 or factor * source.layers > MAX_LAYERS:
        raise UserError(
            f"growth.factor: is {factor}; it must be 1 or more and give at most {MAX_LAYERS} layers"
        )
    layers = tuple(range(source.layers)) * factor
    return _deepened("stack", {"factor": factor}, source, target, layers)


def index_list(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> GrowthMap:
    """Copies any list of source layers: partial stacking, interpolation, SOLAR's up-scaling.

    Args:
      source: the model whose layers are listed.
      target: a model as deep as the list is long; None makes it from the source.
      options: {"layers": notation of `parse_layers`}.

    Raises:
      UserError: a list that cannot be read, is shorter than the source, does not fit the target,
        or names a layer that the source lacks.
    """
    notation = options.get("layers", "")
    layers = parse_layers(notation, source.layers)
    return _deepened("layers", {"layers": notation}, source, target, layers)


def parse_layers(notation: str, source_layers: int) -> tuple[int, ...]:
    """Reads a list of source layers.

    Two notations are known. The paper's (App. H) is one-based, writes layers as single digits and
    groups with `-`, and `*` repeats the group before it: "1-234*7-56" is layer 1, seven times
    2, 3, 4, then 5, 6. It needs a source of at most 9 layers. The other, told by its `:` or `,`,
    is zero-based: half-open ranges and single layers, "0:24,8:32" or "0,0,1,1,2,2".

    Args:
      notation: the list.
      source_layers: depth of the source.

    Returns:
      Zero-based source layer for each target layer.

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
        found = _GROUP.fullmatch(group)
        if found is None:
            raise _unreadable(text, f"{group!r} is no group such as 234 or 234*7")
        digits, times = found.group(1), int(found.group(2) or 1)
        if times < 1:
            raise _unreadable(text, f"{group!r} repeats no times")
        _check_length(text, len(layers) + len(digits) * times)
        layers += [int(digit) - 1 for digit in digits] * times
    return tuple(layers)


def _parse_ranges(text: str) -> tuple[int, ...]:
    layers: list[int] = []
    for item in text.split(","):
        found = _RANGE.fullmatch(item.strip())
        if found is None:
            raise _unreadable(text, f"{item!r} is neither a range such as 0:24 nor a layer")
        start = int(found.group(1))
        stop = start + 1 if found.group(2) is None else int(found.group(2))
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


def _deepened(
    operator: str,
    options: Mapping[str, Any],
    source: ModelConfig,
    target: ModelConfig | None,
    layers: tuple[int, ...],
) -> GrowthMap:
    grown = dataclasses.replace(source, layers=len(layers)) if target is None else target
    growth_map = GrowthMap(operator, options, source, grown, layers)
    growth_map.validate()
    return growth_map
