"""Shapes by name: the presets of every architecture, and the paper's own style."""

import dataclasses
import re

from prts_jax.config import ModelConfig, nearest
from prts_jax.errors import UserError
from prts_jax.model.architecture import ARCHITECTURES

PRESETS: dict[str, ModelConfig] = {
    name: model for record in ARCHITECTURES.values() for name, model in record.presets.items()
}

_BY_WIDTH = {
    PRESETS[name].embed: name for name in ("paper_410m", "paper_1.1b", "paper_3b", "paper_7b")
}


def preset(name: str) -> ModelConfig:
    """Returns the shape of that name.

    Besides the names of `PRESETS`, the paper's style is understood: "6L2048H" is the paper's model
    of width 2048 with 6 layers.

    Raises:
      UserError: no such name; names the nearest.
    """
    if name in PRESETS:
        return PRESETS[name]
    match = re.fullmatch(r"(\d+)L(\d+)H", name)
    if match and int(match[2]) in _BY_WIDTH:
        return dataclasses.replace(PRESETS[_BY_WIDTH[int(match[2])]], layers=int(match[1]))
    aliases = [f"24L{width}H" for width in _BY_WIDTH]
    raise UserError(f"preset: {name!r} is unknown; {nearest(name, [*PRESETS, *aliases])}")
