"""Attention by cuDNN, for GPUs. Letters in shapes: see `attention`."""

import functools

import jax
import jax.numpy as jnp

SEGMENTS = 32
"""Segments of a row that cuDNN's packed layout takes; its statistics need memory for each."""


def refuses(length: int, head_dim: int, dtype: str) -> str:
    """Returns the reason why cuDNN's attention cannot take a shape; "" if it can."""
    if dtype not in ("bfloat16", "float16"):
        return f"cudnn computes in bfloat16 or float16, not {dtype}"
    if head_dim % 8 or head_dim > 128:
        return f"cudnn takes a head_dim that is a multiple of 8 up to 128, not {head_dim}"
    if length % 2:
        return f"cudnn takes even lengths, not {length}"
    return ""


@functools.partial(jax.named_call, name="cudnn_attention")
def attention(
    q_BxHxSxD: jax.Array,
    k_BxKxSxD: jax.Array,
    v_BxKxSxD: jax.Array,
    segment_ids_BxS: jax.Array | None,
) -> jax.Array:
    """Computes causal attention; segments in cuDNN's packed layout.

    Args:
      q_BxHxSxD: queries divided by √D.
      k_BxKxSxD: keys.
      v_BxKxSxD: values.
      segment_ids_BxS: int32; None: one segment.

    Returns:
      [B, H, S, D] in the dtype of `q`.
    """
    q_BxSxHxD, k_BxSxKxD, v_BxSxKxD = (x.swapaxes(1, 2) for x in (q_BxHxSxD, k_BxKxSxD, v_BxKxSxD))
    attend = functools.partial(
        jax.nn.dot_product_attention, scale=1.0, is_causal=True, implementation="cudnn"
    )
    if segment_ids_BxS is None:
        return attend(q_BxSxHxD, k_BxSxKxD, v_BxSxKxD).swapaxes(1, 2)
    # A row with more segments than the packed layout takes needs a mask of [B, 1, S, S].
    out: jax.Array = jax.lax.cond(
        jnp.all(_segment_starts(segment_ids_BxS).sum(axis=1) <= SEGMENTS),
        lambda q, k, v, ids: _packed(q, k, v, *segment_layout(ids)),
        lambda q, k, v, ids: attend(q, k, v, mask=same_segment(ids)[:, None]),
        *(q_BxSxHxD, k_BxSxKxD, v_BxSxKxD, segment_ids_BxS),
    )
    return out.swapaxes(1, 2)


def same_segment(segment_ids_BxS: jax.Array) -> jax.Array:
    """Returns [B, S, S] bool: whether query position and key position are of one segment."""
    return segment_ids_BxS[:, :, None] == segment_ids_BxS[:, None, :]


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


def _packed(
    q_BxSxHxD: jax.Array,
    k_BxSxKxD: jax.Array,
    v_BxSxKxD: jax.Array,
    lengths: jax.Array,
    offsets: jax.Array,
) -> jax.Array:
    from jax._src.cudnn import fused_attention_stablehlo

    # jax computes the keys' offsets with the number of query heads (jax 0.10 to 0.12).
    repeats = q_BxSxHxD.shape[2] // k_BxSxKxD.shape[2]
    k_BxSxHxD, v_BxSxHxD = (jnp.repeat(x, repeats, axis=2) for x in (k_BxSxKxD, v_BxSxKxD))
    out: jax.Array = fused_attention_stablehlo.dot_product_attention(
        q_BxSxHxD,
        k_BxSxHxD,
        v_BxSxHxD,
        q_seqlen=lengths,
        kv_seqlen=lengths,
        q_offsets=offsets,
        kv_offsets=offsets,
        scale=1.0,
        mask_type=fused_attention_stablehlo.MaskType.PADDING_CAUSAL,
    )
    return out
