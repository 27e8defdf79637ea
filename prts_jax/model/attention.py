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

from prts_jax.config.blocks import parse_splash_blocks
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
        return _splash(q_BxHxSxD, k_BxKxSxD, v_BxKxSxD, segment_ids_BxS, splash_blocks)
    if implementation == "cudnn":
        _check_cudnn(q_BxHxSxD, shards)
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


def on_gpu(length: int, head_dim: int, dtype: str, capability: str) -> str:
    """Returns the implementation that "auto" chooses on a GPU: cuDNN's where it takes the shape.

    Args:
      length: positions of a sequence.
      head_dim: of the model.
      dtype: of the activations.
      capability: compute capability of the GPU, such as "9.0".
    """
    taken = not cudnn_refuses(length, head_dim, dtype)
    return "cudnn" if taken and float(capability) >= 9 else "xla"


def cudnn_refuses(length: int, head_dim: int, dtype: str) -> str:
    """Returns the reason why cuDNN's attention cannot take a shape; "" if it can."""
    if dtype not in ("bfloat16", "float16"):
        return f"cudnn computes in bfloat16 or float16, not {dtype}"
    if head_dim % 8 or head_dim > 128:
        return f"cudnn takes a head_dim that is a multiple of 8 up to 128, not {head_dim}"
    if length % 2:
        return f"cudnn takes even lengths, not {length}"
    return ""


def _check_cudnn(q_BxHxSxD: jax.Array, shards: int) -> None:
    _, _, length, head_dim = q_BxHxSxD.shape
    reason = cudnn_refuses(length, head_dim, q_BxHxSxD.dtype.name)
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
    blocks: str,
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
        block_sizes=_splash_tiles(length, length // shards, head_dim, blocks),
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


def _splash_tiles(keys: int, queries: int, head_dim: int, blocks: str) -> Any:
    """Returns the tiles of the splash kernels for so many keys and queries on a device.

    Raises:
      UserError: no tile divides both, or one that the config gives does not.
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
    tiles: Any = {
        "block_q": tile(queries, forward),
        "block_kv": tile(keys, forward),
        "block_q_dkv": tile(queries),
        # The kernel writes a partial sum of dq for each of these: fewer need less memory.
        "block_kv_dkv": tile(keys, 1024),
    } | parse_splash_blocks(blocks)
    for block in ("block_kv", "block_kv_dkv"):
        tiles.setdefault(f"{block}_compute", tile(tiles[block]))
    for block, size in tiles.items():
        whole = queries if "_q" in block else keys
        if block.endswith("_compute"):
            whole = tiles[block.removesuffix("_compute")]
        if whole % size:
            raise UserError(
                f"config.compute.splash_blocks: {size} does not divide {whole} positions; choose a "
                "divisor"
            )
    return splash_attention_kernel.BlockSizes(**tiles, use_fused_bwd_kernel=True)


SEGMENTS = 32
"""Segments of a row that cuDNN's packed layout takes; its statistics need memory for each."""


@functools.partial(jax.named_call, name="cudnn_attention")
def _cudnn(
    q_BxHxSxD: jax.Array,
    k_BxKxSxD: jax.Array,
    v_BxKxSxD: jax.Array,
    segment_ids_BxS: jax.Array | None,
) -> jax.Array:
    q_BxSxHxD, k_BxSxKxD, v_BxSxKxD = (x.swapaxes(1, 2) for x in (q_BxHxSxD, k_BxKxSxD, v_BxKxSxD))
    attend = functools.partial(
        jax.nn.dot_product_attention, scale=1.0, is_causal=True, implementation="cudnn"
    )
    if segment_ids_BxS is None:
        return attend(q_BxSxHxD, k_BxSxKxD, v_BxSxKxD).swapaxes(1, 2)
    # A row with more segments than the packed layout takes needs a mask of [B, 1, S, S].
    out: jax.Array = jax.lax.cond(
        jnp.all(_segment_starts(segment_ids_BxS).sum(axis=1) <= SEGMENTS),
        lambda q, k, v, ids: _cudnn_packed(q, k, v, *segment_layout(ids)),
        lambda q, k, v, ids: attend(q, k, v, mask=_same_segment(ids)[:, None]),
        *(q_BxSxHxD, k_BxSxKxD, v_BxSxKxD, segment_ids_BxS),
    )
    return out.swapaxes(1, 2)


def _segment_starts(segment_ids_BxS: jax.Array) -> jax.Array:
    """Returns [B, S] bool: whether a position is the first of its segment."""
    return segment_ids_BxS != jnp.pad(segment_ids_BxS, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]


def segment_layout(segment_ids_BxS: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns lengths [B, SEGMENTS] and offsets [B, SEGMENTS + 1] of segments, int32, filled by -1.

    This is cuDNN's packed layout. Offsets are positions in a row. Rows have at most `SEGMENTS`.

    >>> lengths, offsets = segment_layout(jnp.array([[4, 4, 4, 5, 6, 6]]))
    >>> lengths[0, :4].tolist(), offsets[0, :4].tolist()
    ([3, 1, 2, -1], [0, 3, 4, -1])
    """
    length = segment_ids_BxS.shape[1]
    starts_BxS = _segment_starts(segment_ids_BxS)
    offsets = jax.vmap(lambda starts: jnp.nonzero(starts, size=SEGMENTS + 1, fill_value=length)[0])(
        starts_BxS
    ).astype(jnp.int32)
    lengths = offsets[:, 1:] - offsets[:, :-1]
    offsets = jnp.where(offsets < length, offsets, -1)
    return jnp.where(lengths > 0, lengths, -1), offsets


def _cudnn_packed(
    q_BxSxHxD: jax.Array,
    k_BxSxKxD: jax.Array,
    v_BxSxKxD: jax.Array,
    lengths: jax.Array,
    offsets: jax.Array,
) -> jax.Array:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    # jax computes the keys' offsets with the number of query heads (jax 0.10 to 0.12).
    repeats = q_BxSxHxD.shape[2] // k_BxSxKxD.shape[2]
    k_BxSxHxD, v_BxSxHxD = (jnp.repeat(x, repeats, axis=2) for x in (k_BxSxKxD, v_BxSxKxD))
    out: jax.Array = cudnn.dot_product_attention(
        q_BxSxHxD,
        k_BxSxHxD,
        v_BxSxHxD,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=1.0,
        mask_type=cudnn.MaskType.PADDING_CAUSAL,
    )
    return out
