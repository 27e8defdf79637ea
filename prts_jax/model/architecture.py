"""Architectures: one record each, looked up by the config's `architecture`."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax

from prts_jax.config import ComputeConfig, ModelConfig, nearest
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.model import llama
from prts_jax.model.inputs import Cache, Cached, Documents, Gates


@dataclass(frozen=True)
class Architecture:
    """A model family: what the rest of the project asks of it.

    Attributes:
      declare: config → path → declaration.
      logits: see `logits`.
      next_logits: see `next_logits`.
      empty_cache: see `empty_cache`.
    """

    declare: Callable[[ModelConfig], Mapping[str, Declaration]]
    logits: Callable[..., jax.Array]
    next_logits: Callable[..., tuple[jax.Array, Cache]]
    empty_cache: Callable[[ModelConfig, ComputeConfig, int, int], Cache]


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(llama.declare, llama.logits, llama.next_logits, llama.empty_cache),
}


def architecture(model: ModelConfig) -> Architecture:
    """Returns the record of a model's architecture.

    Raises:
      UserError: an unknown name.
    """
    if model.architecture not in ARCHITECTURES:
        raise UserError(
            f"config.model.architecture: {model.architecture!r} is unknown; "
            f"{nearest(model.architecture, ARCHITECTURES)}"
        )
    return ARCHITECTURES[model.architecture]


@functools.cache
def declare(model: ModelConfig) -> Mapping[str, Declaration]:
    """Returns the declaration of every parameter by path, without making any array.

    >>> declare(ModelConfig(layers=6, embed=64, mlp=128))["layers/mlp/down"].shape
    (6, 128, 64)
    """
    return MappingProxyType(dict(architecture(model).declare(model)))


def logits(
    params: Mapping[str, Any],
    tokens_BxS: jax.Array,
    model: ModelConfig,
    compute: ComputeConfig,
    *,
    documents: Documents | None = None,
    gates: Gates | None = None,
    frozen: tuple[int, ...] | None = None,
) -> jax.Array:
    """Applies the model; see the architecture's own `logits`."""
    return architecture(model).logits(
        params, tokens_BxS, model, compute, documents=documents, gates=gates, frozen=frozen
    )


def next_logits(
    params: Mapping[str, Any],
    tokens_BxS: jax.Array,
    cached: Cached,
    model: ModelConfig,
    compute: ComputeConfig,
    *,
    gates: Gates | None = None,
) -> tuple[jax.Array, Cache]:
    """Applies the model to the next tokens of cached rows; see the architecture's own."""
    return architecture(model).next_logits(params, tokens_BxS, cached, model, compute, gates=gates)


def empty_cache(model: ModelConfig, compute: ComputeConfig, batch: int, length: int) -> Cache:
    """Returns a cache for `length` positions of `batch` rows; see the architecture's own."""
    return architecture(model).empty_cache(model, compute, batch, length)
