"""Causal attention: one function, with XLA's implementation and the choice of an accelerator's own.

Letters in shapes: B batch, S length, H query heads, K key/value heads, G = H / K queries of a
group, D head_dim. Keys and values stay grouped: repeating them costs bandwidth on TPUs.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from prts_jax.errors import UserError
from prts_jax.mesh import axis_size, constrain
from prts_jax.model import cudnn, splash

ATTENTION = "attention"
"""Name of attention's output for rematerialisation; of splash's, with its log-sum-exp."""


def causal_attention(
    q_BxHxSxD: jax.Array,
    k_BxKxSxD: jax.Array,
    v_BxKxSxD: jax.Array,
    implementation: str,
    precision: jax.lax.Precision,
    segment_ids_BxS: jax.Array | None = None,
    splash_blocks: str = "",
) -> jax.Array:
    """Computes softmax(q kᵀ) v over earlier positions, with the softmax in float32.

    Where the mesh splits positions, a device has its part of the queries and all keys and values.

    Args:
      q_BxHxSxD: queries divided by √D; head h reads key/value head h // (H / K).
      k_BxKxSxD: keys.
      v_BxKxSxD: values.
      implementation: "xla", "splash" (TPU), "cudnn" (GPU), or "auto": the accelerator's own where
        it takes the shape, see `on_tpu` and `on_gpu`, and XLA elsewhere.
      precision: of the matrix products in the XLA implementation.
      segment_ids_BxS: int32; a position attends to its own segment only; None: one segment. The
        positions of a segment follow one another.
      splash_blocks: tiles of the splash kernels, see `parse_splash_blocks`.

    Returns:
      [B, H, S, D] in the dtype of `q`.

    Raises:
      UserError: "splash" or "cudnn" cannot take the shape.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else axis_size(mesh, "length")
    if implementation == "auto":
        _, _, length, head_dim = q_BxHxSxD.shape
        dtype, backend = q_BxHxSxD.dtype.name, jax.default_backend()
        implementation = "xla"
        if backend == "tpu":
            implementation = on_tpu(length // shards, dtype)
        elif backend == "gpu" and shards == 1:
            capability = getattr(jax.local_devices()[0], "compute_capability", "0.0")
            implementation = on_gpu(length, head_dim, dtype, capability)
    by_key = ("batch", "kv_heads", "keys", "head_dim")
    k_BxKxSxD, v_BxKxSxD = constrain(k_BxKxSxD, by_key), constrain(v_BxKxSxD, by_key)
    if implementation == "splash":
        arrays = (q_BxHxSxD, k_BxKxSxD, v_BxKxSxD, segment_ids_BxS)
        return splash.attention(*arrays, blocks=splash_blocks, output_name=ATTENTION)
    if implementation == "cudnn":
        _check_cudnn(q_BxHxSxD, shards)
        out = cudnn.attention(q_BxHxSxD, k_BxKxSxD, v_BxKxSxD, segment_ids_BxS)
        return checkpoint_name(out, ATTENTION)
    seen = jnp.tril(jnp.ones((q_BxHxSxD.shape[2],) * 2, bool))
    if segment_ids_BxS is not None:
        seen = seen & cudnn.same_segment(segment_ids_BxS)[:, None, None]
    out = _xla(q_BxHxSxD, k_BxKxSxD, v_BxKxSxD, precision, seen)
    # Backward its cotangent would otherwise be split as the stream between layers is.
    return checkpoint_name(constrain(out, ("batch", "heads", "length", "head_dim")), ATTENTION)


def on_tpu(length: int, dtype: str) -> str:
    """Returns the implementation that "auto" chooses on a TPU: splash where it takes the shape.

    Args:
      length: positions of a sequence on one device.
      dtype: of the activations.
    """
    return "splash" if length % splash.TILES[-1] == 0 and dtype != "float32" else "xla"


def on_gpu(length: int, head_dim: int, dtype: str, capability: str) -> str:
    """Returns the implementation that "auto" chooses on a GPU: cuDNN's where it takes the shape.

    Args:
      length: positions of a sequence.
      head_dim: of the model.
      dtype: of the activations.
      capability: compute capability of the GPU, such as "9.0".
    """
    taken = not cudnn.refuses(length, head_dim, dtype)
    return "cudnn" if taken and float(capability) >= 9 else "xla"


def _check_cudnn(q_BxHxSxD: jax.Array, shards: int) -> None:
    _, _, length, head_dim = q_BxHxSxD.shape
    reason = cudnn.refuses(length, head_dim, q_BxHxSxD.dtype.name)
    if shards > 1:
        reason = f"cudnn takes whole sequences, and config.mesh splits them among {shards} devices"
    if reason:
        raise UserError(f"config.compute.attention: {reason}; choose 'auto' or 'xla'")


def cached_attention(
    q_BxHxSxD: jax.Array,
    k_BxKxTxD: jax.Array,
    v_BxKxTxD: jax.Array,
    positions_BxS: jax.Array,
    precision: jax.lax.Precision,
) -> jax.Array:
    """Computes attention of some tokens to the cached keys and values of all tokens up to them.

    Args:
      q_BxHxSxD: queries divided by √D; head h reads key/value head h // (H / K).
      k_BxKxTxD: keys by position.
      v_BxKxTxD: values by position.
      positions_BxS: int32, the position of each query, which reads keys 0 to its position.
      precision: of the matrix products.

    Returns:
      [B, H, S, D] in the dtype of `q`.
    """
    keys_T = jnp.arange(k_BxKxTxD.shape[2])
    seen = (keys_T <= positions_BxS[:, :, None])[:, None, None]
    return _xla(q_BxHxSxD, k_BxKxTxD, v_BxKxTxD, precision, seen)


def _xla(
    q_BxHxSxD: jax.Array,
    k_BxKxSxD: jax.Array,
    v_BxKxSxD: jax.Array,
    precision: jax.lax.Precision,
    seen: jax.Array,
) -> jax.Array:
    batch, heads, length, head_dim = q_BxHxSxD.shape
    groups = k_BxKxSxD.shape[1]
    q_BxKxGxSxD = q_BxHxSxD.reshape(batch, groups, heads // groups, length, head_dim)
    scores = jnp.einsum(
        "bkgsd,bktd->bkgst",
        q_BxKxGxSxD,
        k_BxKxSxD,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
    out = jnp.einsum(
        "bkgst,bktd->bkgsd", weights.astype(v_BxKxSxD.dtype), v_BxKxSxD, precision=precision
    )
    return out.reshape(q_BxHxSxD.shape)
