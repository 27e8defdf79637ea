"""Architectures by name, and what the project asks of any of them."""

import functools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from prts_jax import tree
from prts_jax.config import ComputeConfig, ModelConfig, nearest
from prts_jax.declaration import Declaration, Kind
from prts_jax.errors import UserError
from prts_jax.mesh import constrain
from prts_jax.model.inputs import Cache, Cached, Documents, Gates
from prts_jax.model.llama import LLAMA
from prts_jax.model.parameters import Declared
from prts_jax.model.qwen3 import QWEN3
from prts_jax.model.spec import Architecture

ARCHITECTURES: dict[str, Architecture] = {"llama": LLAMA, "qwen3": QWEN3}
"""Value of `config.model.architecture` → its record."""


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

    Raises:
      UserError: an unknown architecture.

    >>> declare(ModelConfig(layers=6, embed=64, mlp=128))["layers/mlp/down"].shape
    (6, 128, 64)
    """
    # Nothing here may touch a device: config files count FLOPs before jax.distributed starts.
    compute = ComputeConfig(dtype="float32", attention="xla")
    module = architecture(model).module(model, compute, None)

    def init() -> Any:
        return module.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]

    boxed = tree.flatten(jax.eval_shape(init))
    return MappingProxyType({path: _declaration(box) for path, box in boxed.items()})


def _declaration(box: Declared) -> Declaration:
    array = box.value
    return Declaration(
        array.shape,
        array.dtype.name,
        box.axes,
        box.contracts,
        box.init,
        box.kind,
        box.normalizes,
        box.normed,
    )


def in_compute_dtype(
    params: Mapping[str, Any], model: ModelConfig, compute: ComputeConfig
) -> dict[str, Any]:
    """Returns the parameters of matrix products in the dtype of activations; norms stay float32.

    Their gradients then have this dtype as well, as precise as products make them.
    """
    declarations, dtype = declare(model), jnp.dtype(compute.dtype)
    return tree.unflatten(
        {
            path: leaf if declarations[path].kind is Kind.NORM else leaf.astype(dtype)
            for path, leaf in tree.flatten(params).items()
        }
    )


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
    """Applies the model.

    Args:
      params: nested dictionary of float32 arrays with the shapes of `declare(model)`.
      tokens_BxS: int32 token ids.
      model: the model's shape.
      compute: dtype, attention, remat and scan.
      documents: position and segment of each token; None: a row is one document.
      gates: factors of what growth added; None: all open.
      frozen: layers without a gradient; neither has the embedding's look-up. None: all have one.

    Returns:
      [B, S, vocab] float32: position s scores the token at s + 1.
    """
    module = architecture(model).module(model, compute, frozen)
    out: tuple[jax.Array, None] = module.apply(  # type: ignore[assignment]
        {"params": params}, tokens_BxS, documents, gates, None
    )
    return out[0]


def losses(
    params: Mapping[str, Any],
    tokens_BxS: jax.Array,
    targets_BxS: jax.Array,
    model: ModelConfig,
    compute: ComputeConfig,
    *,
    documents: Documents | None = None,
    gates: Gates | None = None,
    frozen: tuple[int, ...] | None = None,
    z_loss: float = 0.0,
) -> jax.Array:
    """Returns the loss of each target: [B, S] float32, nats.

    Equals `token_losses` of the logits; with compute.loss_chunks above 1 the logits of all
    positions never exist at once. Arguments are those of `logits` and `token_losses`.
    """
    module = architecture(model).module(model, compute, frozen)
    out: tuple[jax.Array, None] = module.apply(  # type: ignore[assignment]
        {"params": params}, tokens_BxS, documents, gates, None, targets_BxS, z_loss
    )
    return out[0]


def next_logits(
    params: Mapping[str, Any],
    tokens_BxS: jax.Array,
    cached: Cached,
    model: ModelConfig,
    compute: ComputeConfig,
) -> tuple[jax.Array, Cache]:
    """Applies the model to the next tokens of rows whose earlier tokens are in a cache.

    Rows may have different lengths: later tokens overwrite the padding on a row's right, and no
    token attends to it before.

    Args:
      params: as `logits` takes them.
      tokens_BxS: int32, the next tokens of each row.
      cached: earlier keys and values, and the positions of these tokens.
      model: the model's shape.
      compute: dtype, remat and scan; attention is XLA's.

    Returns:
      ([B, vocab] float32: scores of the successor of token `scored_B` of each row; the cache with
      these tokens in it).
    """
    module = architecture(model).module(model, compute, None)
    out: tuple[jax.Array, Cache] = module.apply(  # type: ignore[assignment]
        {"params": params}, tokens_BxS, None, None, cached
    )
    return out[0][:, 0], out[1]


def empty_cache(model: ModelConfig, compute: ComputeConfig, batch: int, length: int) -> Cache:
    """Returns a cache for `length` positions of `batch` rows.

    Args:
      model: the model's shape.
      compute: its dtype is the cache's.
      batch: rows.
      length: largest number of positions of a row.
    """
    shape = (model.layers, batch, model.kv_heads, length, model.head_dim)
    axes = ("layers", "batch", "kv_heads", "keys", "head_dim")
    zeros = constrain(jnp.zeros(shape, jnp.dtype(compute.dtype)), axes)
    return Cache(zeros, zeros)
