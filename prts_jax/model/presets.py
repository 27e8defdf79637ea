"""Shapes by name: the paper's models and their bases, Llama 2 and Llama 3."""

import dataclasses
import re

from prts_jax.config import ModelConfig, RopeScaling, nearest
from prts_jax.errors import UserError

_UNSCALED = RopeScaling()
_LLAMA3_1 = RopeScaling(factor=8.0)
_LLAMA3_2 = RopeScaling(factor=32.0)


def _llama(
    layers: int,
    embed: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    vocab: int = 32000,
    theta: float = 10000.0,
    scaling: RopeScaling = _UNSCALED,
    tied: bool = False,
) -> ModelConfig:
    return ModelConfig(
        vocab=vocab,
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=embed // heads,
        mlp=mlp,
        rope_theta=theta,
        rope_scaling=scaling,
        tied=tied,
    )


PRESETS: dict[str, ModelConfig] = {
    "paper_410m": _llama(24, 1024, 16, 16, 2816),
    "paper_410m_base": _llama(6, 1024, 16, 16, 2816),
    "paper_1.1b": _llama(24, 2048, 32, 32, 5632),
    "paper_1.1b_base": _llama(6, 2048, 32, 32, 5632),
    "paper_3b": _llama(32, 2560, 20, 4, 7040),
    "paper_3b_base": _llama(8, 2560, 20, 4, 7040),
    "paper_7b": _llama(32, 4096, 32, 8, 11008),
    "paper_7b_base": _llama(8, 4096, 32, 8, 11008),
    "llama2_7b": _llama(32, 4096, 32, 32, 11008),
    "llama2_13b": _llama(40, 5120, 40, 40, 13824),
    "llama2_70b": _llama(80, 8192, 64, 8, 28672),
    "llama3_8b": _llama(32, 4096, 32, 8, 14336, 128256, 500000.0),
    "llama3_70b": _llama(80, 8192, 64, 8, 28672, 128256, 500000.0),
    "llama3.1_8b": _llama(32, 4096, 32, 8, 14336, 128256, 500000.0, _LLAMA3_1),
    "llama3.1_70b": _llama(80, 8192, 64, 8, 28672, 128256, 500000.0, _LLAMA3_1),
    "llama3.2_1b": _llama(16, 2048, 32, 8, 8192, 128256, 500000.0, _LLAMA3_2, tied=True),
}
"""Name → shape. `paper_*` are those of Du et al., arXiv 2405.15319; the others are from the
published config.json files."""

_BY_WIDTH = {
    PRESETS[name].embed: name for name in ("paper_410m", "paper_1.1b", "paper_3b", "paper_7b")
}


def preset(name: str) -> ModelConfig:
    """Returns the shape of that name.

    Besides the names of `PRESETS`, the original's style is understood: "6L2048H" is the paper's
    model of width 2048 with 6 layers.

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
