"""A growth operator: a function that states its name, its options and their help."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.config import ModelConfig
from prts_jax.growth.map import GrowthMap

# Help of options that several operators take.
FACTOR = "copies of the source's layers (default: from the target)"
BLOCK = "layers of the block that is copied (default: from the target)"
ORDER = "'interleave' puts new layers after their originals, 'stack' on top"
SEED = "seed of everything drawn"
GATE_STEPS = (
    "steps in which the gate of a new layer or unit opens, shut at growth; 0: open at once, not "
    "function preserving"
)
WIDTHS = "new sizes, as 'embed=2048,mlp=5632,heads=32' (default: the target's)"
NORM = "'exact' or 'paper', the paper's formula, which is not function preserving"
NORM_OR_RMS = (
    f"{NORM}; or 'rms', which keeps the mean square of activations instead of the function"
)

Make = Callable[[ModelConfig, ModelConfig | None, Mapping[str, Any]], GrowthMap]
"""(source, target or None to make it from the source, options) → map with the grown model."""


@dataclass(frozen=True)
class Operator:
    """A growth operator; call it as the function that it holds.

    Attributes:
      options: option → help. An option that is no key of `prts_jax.config.GrowthConfig` is given in
        `init.growth.options` as text. None takes every option unseen.
    """

    name: str
    make: Make
    options: Mapping[str, str] | None

    def __call__(
        self, source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
    ) -> GrowthMap:
        """Makes a map; see `Make`."""
        return self.make(source, target, options)


def operator(name: str, **options: str) -> Callable[[Make], Operator]:
    """Makes an operator of the decorated function, in this package or in another; option → help.

    >>> @operator("mirror", quiet="layers with zero outputs on top")
    ... def mirror(source, target, options): ...
    >>> mirror.options
    {'quiet': 'layers with zero outputs on top'}
    """
    return lambda make: Operator(name, make, options)
