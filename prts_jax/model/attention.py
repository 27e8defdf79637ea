"""Causal attention, one function with an implementation per accelerator.

Letters in shapes: B batch, S length, H query heads, K key/value heads, G = H / K queries of a
group, D head_dim. Keys and values stay grouped: repeating them costs bandwidth on TPUs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

from prts_jax.errors import UserError
from prts_jax.mesh import axis_size, constrain, partition_spec

SPLASH_BLOCKS = (512, 256, 128)
"""Tiles of the splash kernels, best first: a length takes the first that divides it."""


ATTENTION = "attention"
"""Name of attention's output for rematerialisation; of splash's, with its log-sum-exp."""


def causal_attention(
    q_BxHxSxD: jax.Array,
    k_BxKxSxD: jax.Array,
    v_BxKxSxD: jax.Array,
    implementation: str,
    precision: jax.lax.Precision,
    segment_ids_BxS: jax.Array | None = None,
) -> jax.Array:
    """Computes softmax(q kᵀ) v over earlier positions, with the softmax in float32.

    Where the mesh splits positions, a device has its part of the queries and all keys and values.

    Args:
      q_BxHxSxD: queries divided by √D; head h reads key/value head h // (H / K).
      k_BxKxSxD: keys.
      v_BxKxSxD: values.
      implementation: "xla", "splash" (TPU), "cudnn" (GPU), or "auto": splash on TPU where it
        takes the shape (lengths that are multiples of 128), XLA elsewhere.
      precision: of the matrix products in the XLA implementation.
      segment_ids_BxS: int32; a position attends to its own segment only; None: one segment.
        cuDNN reads them as a mask of [B, 1, S, S], which costs memory.

    Returns:
      [B, H, S, D] in the dtype of `q`.

    Raises:
      UserError: "splash" cannot tile the length, or "cudnn" does not get whole sequences.
    """
    mesh = jax.sharding.get_abstract_mesh()
    shards = 1 if mesh.empty else axis_size(mesh, "length")
    if implementation == "auto":
        best = on_tpu(q_BxHxSxD.shape[2] // shards, q_BxHxSxD.dtype.name)
        implementation = best if jax.default_backend() == "tpu" else "xla"
    by_key = ("batch", "kv_heads", "keys", "head_dim")
    k_BxKxSxD, v_BxKxSxD = constrain(k_BxKxSxD, by_key), constrain(v_BxKxSxD, by_key)
    if implementation == "splash":
        return _splash(q_BxHxSxD, k_BxKxSxD, v_BxKxSxD, segment_ids_BxS)
    if implementation == "cudnn":
        if shards > 1:
            raise UserError(
                "config.compute.attention: cudnn takes whole sequences, and config.mesh splits "
                f"them among {shards} devices; choose 'xla', or config.mesh.sequence=1"
            )
        out = _cudnn(q_BxHxSxD, k_BxKxSxD, v_BxKxSxD, segment_ids_BxS)
        return checkpoint_name(out, ATTENTION)
    seen = jnp.tril(jnp.ones((q_BxHxSxD.shape[2],) * 2, bool))
    if segment_ids_BxS is not None:
        seen = seen & _same_segment(segment_ids_BxS)[:, None, None]
    out = _xla(q_BxHxSxD, k_BxKxSxD, v_BxKxSxD, precision, seen)
    # Backward its cotangent would otherwise be split as the stream between layers is.
    return checkpoint_name(constrain(out, ("batch", "heads", "length", "head_dim")), ATTENTION)


def on_tpu(length: int, dtype: str) -> str:
    """Returns the implementation that "auto" chooses on a TPU: splash where it takes the shape.

    Args:
      length: positions of a sequence on one device.
      dtype: of the activations.
    """
    return "splash" if length % SPLASH_BLOCKS[-1] == 0 and dtype != "float32" else "xla"


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


def _same_segment(segment_ids_BxS: jax.Array) -> jax.Array:
    """Returns [B, S, S] bool: whether query position and key position are of one segment."""
    return segment_ids_BxS[:, :, None] == segment_ids_BxS[:, None, :]


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


def _splash(
    q_BxHxSxD: jax.Array,
    k_BxKxSxD: jax.Array,
    v_BxKxSxD: jax.Array,
    segment_ids_BxS: jax.Array | None,
) -> jax.Array:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    _, heads, length, head_dim = q_BxHxSxD.shape
    groups = k_BxKxSxD.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    tensor, shards = (1, 1) if mesh.empty else (axis_size(mesh, x) for x in ("kv_heads", "length"))
    if groups % tensor:  # of a teacher, whose heads every device computes
        tensor, query_axis, key_axis = 1, "features", "features"
    else:
        query_axis, key_axis = "heads", "kv_heads"
    mask = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.CausalMask((length, length)) for _ in range(heads // groups)]
    )
    kernel = splash_attention_kernel.make_splash_mqa(
        mask=mask,
        block_sizes=_splash_tiles(length, length // shards, head_dim),
        residual_checkpoint_name=ATTENTION,
        head_shards=1,
        q_seq_shards=shards,
    )

    def attend(
        kernel: Any,
        q_BxHxSxD: jax.Array,
        k_BxKxTxD: jax.Array,
        v_BxKxTxD: jax.Array,
        *segment_ids: jax.Array,
    ) -> jax.Array:
        batch, local_heads, positions = q_BxHxSxD.shape[:3]
        local_groups = groups // tensor
        q_BxKxGxSxD = q_BxHxSxD.reshape(
            batch, local_groups, local_heads // local_groups, positions, head_dim
        )
        segments = [splash_attention_kernel.SegmentIds(*segment_ids)] if segment_ids else []
        by_group = jax.vmap(kernel, in_axes=(0, 0, 0, *[None for _ in segments]))
        out = jax.vmap(by_group)(q_BxKxGxSxD, k_BxKxTxD, v_BxKxTxD, *segments)
        return out.reshape(q_BxHxSxD.shape)

    arrays = [q_BxHxSxD, k_BxKxSxD, v_BxKxSxD]
    by_key: tuple[str, ...] = ("batch", key_axis, "keys", "head_dim")
    axes = [("batch", query_axis, "length", "head_dim"), by_key, by_key]
    if segment_ids_BxS is not None:
        arrays += [segment_ids_BxS, segment_ids_BxS]
        axes += [("batch", "length"), ("batch", "keys")]
    if mesh.empty:
        return attend(kernel, *arrays)
    specs = [partition_spec(each) for each in axes]
    by_positions = NamedSharding(mesh, PartitionSpec(None, partition_spec(("length",))[0]))
    return jax.shard_map(
        attend,
        in_specs=(kernel.manual_sharding_spec(by_positions), *specs),
        out_specs=specs[0],
        check_vma=False,
    )(kernel, *arrays)


def _splash_tiles(keys: int, queries: int, head_dim: int) -> Any:
    """Returns the tiles of the splash kernels for so many keys and queries on a device.

    Raises:
      UserError: no tile divides both.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    def tile(positions: int, largest: int = SPLASH_BLOCKS[0]) -> int:
        return next((n for n in (largest, *SPLASH_BLOCKS) if positions % n == 0), 0)

    if not tile(queries):
        raise UserError(
            f"config.compute.attention: splash takes multiples of 128 positions on a device, not "
            f"{queries}; choose another length, or 'auto'"
        )
    # By the compiler's count of bundles larger tiles pay at length 4096 and head_dim 128.
    forward = 1024 if keys >= 4096 and head_dim >= 128 else SPLASH_BLOCKS[0]
    return splash_attention_kernel.BlockSizes(
        block_q=tile(queries, forward),
        block_kv=tile(keys, forward),
        block_kv_compute=tile(keys),
        block_q_dkv=tile(queries),
        # The kernel writes a partial sum of dq for each of these: fewer need less memory.
        block_kv_dkv=tile(keys, 1024),
        block_kv_dkv_compute=tile(keys),
        use_fused_bwd_kernel=True,
    )


@functools.partial(jax.named_call, name="cudnn_attention")
def _cudnn(
    q_BxHxSxD: jax.Array,
    k_BxKxSxD: jax.Array,
    v_BxKxSxD: jax.Array,
    segment_ids_BxS: jax.Array | None,
) -> jax.Array:
    mask = None if segment_ids_BxS is None else _same_segment(segment_ids_BxS)[:, None]
    out = jax.nn.dot_product_attention(
        q_BxHxSxD.swapaxes(1, 2),
        k_BxKxSxD.swapaxes(1, 2),
        v_BxKxSxD.swapaxes(1, 2),
        mask=mask,
        scale=1.0,
        is_causal=True,
        implementation="cudnn",
    )
    return out.swapaxes(1, 2)
