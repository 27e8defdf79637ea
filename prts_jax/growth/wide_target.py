"""The target's shape of growth in width, and the notation of new sizes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prts_jax.config import ModelConfig, check_model, nearest
from prts_jax.errors import UserError

AXES = ("embed", "mlp", "heads", "kv_heads", "head_dim")
"""The logical axes that can widen; each has the name of its size in `ModelConfig`."""


def wide_target(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> ModelConfig:
    """Returns the target's shape: the given one, or the source with the sizes of "widths"."""
    sizes = parse_widths(options.get("widths", ""))
    if target is None:
        factor = options.get("factor", 0) or 1
        if not sizes:
            raise UserError(
                "growth.widths: is empty and no target is given; give sizes, as embed=2048"
            )
        changes: dict[str, Any] = {"layers": source.layers * factor, **sizes}
        wide = dataclasses.replace(source, **changes)
    else:
        wide = target
        for axis, size in sizes.items():
            if getattr(target, axis) != size:
                raise UserError(
                    f"growth.widths: {axis}={size}, but config.model.{axis} is "
                    f"{getattr(target, axis)}; make them equal"
                )
    for axis in AXES:
        if getattr(wide, axis) < getattr(source, axis):
            raise UserError(
                f"growth: {axis} from {getattr(source, axis)} to {getattr(wide, axis)}; growth "
                "never shrinks: give at least the source's"
            )
    if wide.kv_heads < 1 or wide.heads % wide.kv_heads:
        raise UserError(
            f"growth.widths: {wide.heads} heads do not divide among kv_heads={wide.kv_heads}; "
            "grow both by the same factor (whole query groups)"
        )
    check_model(wide, "growth.target")  # before lists as long as its axes are built
    return wide


def parse_widths(text: str) -> dict[str, int]:
    """Reads sizes of axes: "embed=2048,mlp=5632".

    Raises:
      UserError: an unknown axis, one named twice, or a size that is no count.
    """
    sizes: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        axis, _, size = item.partition("=")
        if axis not in AXES:
            raise UserError(f"growth.widths: {axis!r} is no axis; {nearest(axis, AXES)}")
        if axis in sizes or not (size.isascii() and size.isdigit() and 0 < len(size) < 8):
            raise UserError(
                f"growth.widths: {item!r}: name each axis once, with its new size, as embed=2048"
            )
        sizes[axis] = int(size)
    return sizes
