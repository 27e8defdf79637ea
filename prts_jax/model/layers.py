"""The layers of a decoder block as functions and Linen modules.

Letters in shapes: B batch, S length, E embed, H query heads, K key/value heads, D head_dim, M mlp.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from prts_jax.config import ComputeConfig, ModelConfig, RopeScaling
from prts_jax.declaration import STREAM, Kind
from prts_jax.mesh import constrain, gather_residual
from prts_jax.model.attention import cached_attention, causal_attention
from prts_jax.model.inputs import Cache, Gates
from prts_jax.model.parameters import declare_norm, declare_param

Rope = tuple[jax.Array, jax.Array]
"""Cosines and sines of the positions' angles."""


def matmul_precision(dtype: str) -> jax.lax.Precision:
    """Returns the precision of products; TPU and GPU default to fewer bits than float32 has."""
    return jax.lax.Precision.HIGHEST if dtype == "float32" else jax.lax.Precision.DEFAULT


@functools.partial(jax.checkpoint, prevent_cse=False, static_argnums=2)
def rms_norm(x_BxSxE: jax.Array, scale_E: jax.Array, eps: float) -> jax.Array:
    """Scales x / √(mean(x²) + eps) over the last axis, in float32; same dtype as `x`.

    Keeps its inputs alone for the backward pass, which computes the rest again.
    """
    x = x_BxSxE.astype(jnp.float32)
    mean_square = jnp.mean(x * x, axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + eps) * scale_E).astype(x_BxSxE.dtype)


@functools.partial(jax.checkpoint, prevent_cse=False)
def swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """Returns silu(gate) · up; keeps its inputs alone for the backward pass."""
    return jax.nn.silu(gate) * up


def rope_frequencies(head_dim: int, theta: float, scaling: RopeScaling) -> jax.Array:
    """Returns the angular frequencies of rotary embeddings, radians a position.

    With `scaling.factor` above 1, Llama 3's: wavelengths beyond original_length / low_freq_factor
    are stretched by the factor, those below original_length / high_freq_factor stay, and the
    ones between are interpolated (as in transformers' "llama3" rope type).

    Returns:
      [head_dim / 2] float32.
    """
    freq = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    if scaling.factor == 1.0:
        return freq
    periods = scaling.original_length * freq / (2 * math.pi)
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    kept = jnp.clip((periods - low) / (high - low), 0.0, 1.0)
    return freq * (kept + (1 - kept) / scaling.factor)


def rope_tables(positions: jax.Array, model: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Returns cosines and signed sines, each [*positions.shape, head_dim] float32.

    Both halves of the last axis hold the same angles; the sines of the first are negative.

    Args:
      positions: of any shape.
      model: its head_dim, rope_theta and rope_scaling.
    """
    freq = rope_frequencies(model.head_dim, model.rope_theta, model.rope_scaling)
    angle = positions.astype(jnp.float32)[..., None] * freq
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def apply_rope(
    x_BxHxSxD: jax.Array, cos: jax.Array, sin: jax.Array, scale: float = 1.0
) -> jax.Array:
    """Rotates pairs (i, i + D/2), Hugging Face's half-split order; same dtype as `x`.

    Args:
      x_BxHxSxD: queries or keys.
      cos: float32 [S, D], or [B, 1, S, D] where rows have positions of their own.
      sin: the same, negative in the first half.
      scale: factor of the result, applied before rounding to the dtype of `x`.
    """
    exchanged = exchange_halves(x_BxHxSxD).astype(jnp.float32)
    rotated = x_BxHxSxD.astype(jnp.float32) * cos + exchanged * sin
    return (rotated if scale == 1.0 else rotated * scale).astype(x_BxHxSxD.dtype)


@jax.custom_vjp
def exchange_halves(x_BxHxSxD: jax.Array) -> jax.Array:
    """Returns x with the halves of its last axis exchanged; exact on every platform.

    On TPUs a product with a permutation does it: half-vectors waste half of every register there.
    """
    half, dtype = x_BxHxSxD.shape[-1] // 2, x_BxHxSxD.dtype

    def by_product(x: jax.Array) -> jax.Array:
        swap_DxD = jnp.roll(jnp.eye(2 * half, dtype=dtype), half, axis=0)
        return jnp.einsum("bhsd,de->bhse", x, swap_DxD, precision=matmul_precision(dtype.name))

    def by_roll(x: jax.Array) -> jax.Array:
        return jnp.roll(x, half, axis=-1)

    exchanged: jax.Array = jax.lax.platform_dependent(x_BxHxSxD, tpu=by_product, default=by_roll)
    return exchanged


exchange_halves.defvjp(lambda x: (exchange_halves(x), None), lambda _, g: (exchange_halves(g),))


def gated(x: jax.Array, gate: jax.Array | None) -> jax.Array:
    """Returns x ⊙ c in the dtype of `x`; without a gate, `x` itself."""
    return x if gate is None else x * gate.astype(x.dtype)


def put(kept_BxKxTxD: jax.Array, new_BxKxSxD: jax.Array, positions_BxS: jax.Array) -> jax.Array:
    """Returns what is kept of one layer, with new values at their positions."""
    kept_BxKxTxD = jax.vmap(lambda kept, new, at: kept.at[:, at].set(new))(
        kept_BxKxTxD, new_BxKxSxD, positions_BxS
    )
    return constrain(kept_BxKxTxD, ("batch", "kv_heads", "keys", "head_dim"))


class Attention(nn.Module):
    """Causal grouped-query self-attention with rotary positions; no biases.

    With `head_norms`, an RMS norm over head_dim comes between each projection and the rotation of
    queries and keys; all heads of a layer share its scale.
    """

    model: ModelConfig
    compute: ComputeConfig
    head_norms: bool = False

    @nn.compact
    def __call__(
        self,
        x_BxSxE: jax.Array,
        rope: Rope,
        segment_ids_BxS: jax.Array | None,
        gate_H: jax.Array | None,
        cache: Cache | None,
        positions_BxS: jax.Array | None,
    ) -> tuple[jax.Array, Cache | None]:
        """Maps [B, S, E] to [B, S, E], and one layer's cache to what it is after these tokens."""
        m = self.model
        dtype = jnp.dtype(self.compute.dtype)
        precision = matmul_precision(self.compute.dtype)
        embed, head_dim = {"embed": m.embed}, {"head_dim": m.head_dim}
        heads, kv_heads = {"heads": m.heads}, {"kv_heads": m.kv_heads}
        normed = self.head_norms
        query, key = embed | heads | head_dim, embed | kv_heads | head_dim
        w_q = declare_param(self, "q", Kind.QUERY, query, ("embed",), normed=normed)
        w_k = declare_param(self, "k", Kind.KEY, key, ("embed",), normed=normed)
        w_v = declare_param(self, "v", Kind.VALUE, embed | kv_heads | head_dim, ("embed",))
        w_o = declare_param(self, "o", Kind.OUTPUT, heads | head_dim | embed, ("heads", "head_dim"))

        def project(w_ExHxD: jax.Array, axis: str) -> jax.Array:
            y = jnp.einsum("bse,ehd->bhsd", x_BxSxE, w_ExHxD.astype(dtype), precision=precision)
            return constrain(y, ("batch", axis, "length", "head_dim"))

        q_BxHxSxD, k_BxKxSxD = project(w_q, "heads"), project(w_k, "kv_heads")
        if normed:
            q_BxHxSxD = rms_norm(q_BxHxSxD, declare_norm(self, "q_norm", head_dim), m.norm_eps)
            k_BxKxSxD = rms_norm(k_BxKxSxD, declare_norm(self, "k_norm", head_dim), m.norm_eps)
        q_BxHxSxD = checkpoint_name(apply_rope(q_BxHxSxD, *rope, m.head_dim**-0.5), "query")
        k_BxKxSxD = checkpoint_name(apply_rope(k_BxKxSxD, *rope), "key")
        v_BxKxSxD = checkpoint_name(project(w_v, "kv_heads"), "value")
        if cache is None or positions_BxS is None:
            out_BxHxSxD = causal_attention(
                q_BxHxSxD,
                k_BxKxSxD,
                v_BxKxSxD,
                self.compute.attention,
                precision,
                segment_ids_BxS,
                self.compute.splash_blocks,
            )
        else:
            cache = Cache(
                put(cache.k_LxBxKxTxD, k_BxKxSxD, positions_BxS),
                put(cache.v_LxBxKxTxD, v_BxKxSxD, positions_BxS),
            )
            out_BxHxSxD = cached_attention(q_BxHxSxD, *cache, positions_BxS, precision)
        if gate_H is not None:
            out_BxHxSxD = gated(out_BxHxSxD, gate_H[:, None, None])
        out_BxSxE = jnp.einsum("bhsd,hde->bse", out_BxHxSxD, w_o.astype(dtype), precision=precision)
        return out_BxSxE, cache


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)); no biases."""

    model: ModelConfig
    compute: ComputeConfig

    @nn.compact
    def __call__(self, x_BxSxE: jax.Array, gate_M: jax.Array | None) -> jax.Array:
        """Maps [B, S, E] to [B, S, E]."""
        dtype = jnp.dtype(self.compute.dtype)
        precision = matmul_precision(self.compute.dtype)
        embed, mlp = {"embed": self.model.embed}, {"mlp": self.model.mlp}
        w_gate = declare_param(self, "gate", Kind.READER, embed | mlp, ("embed",))
        w_up = declare_param(self, "up", Kind.READER, embed | mlp, ("embed",))
        w_down = declare_param(self, "down", Kind.WRITER, mlp | embed, ("mlp",), "down_projection")
        gate_BxSxM = jnp.einsum("bse,em->bsm", x_BxSxE, w_gate.astype(dtype), precision=precision)
        up_BxSxM = jnp.einsum("bse,em->bsm", x_BxSxE, w_up.astype(dtype), precision=precision)
        gate_BxSxM, up_BxSxM = checkpoint_name(gate_BxSxM, "gate"), checkpoint_name(up_BxSxM, "up")
        hidden_BxSxM = constrain(swiglu(gate_BxSxM, up_BxSxM), ("batch", "length", "mlp"))
        hidden_BxSxM = gated(hidden_BxSxM, gate_M)
        return jnp.einsum("bsm,me->bse", hidden_BxSxM, w_down.astype(dtype), precision=precision)


class Block(nn.Module):
    """One pre-norm transformer layer, shaped for `nn.scan`: (carry, …) → (carry, cache)."""

    model: ModelConfig
    compute: ComputeConfig
    head_norms: bool = False

    @nn.compact
    def __call__(
        self,
        x_BxSxE: jax.Array,
        rope: Rope,
        segment_ids_BxS: jax.Array | None,
        gates: Gates,
        positions_BxS: jax.Array | None,
        layer_gate: jax.Array | None,
        cache: Cache | None,
    ) -> tuple[jax.Array, Cache | None]:
        """Maps the residual stream [B, S, E] to itself, and this layer's cache to the new one.

        Args:
          x_BxSxE: the residual stream.
          rope: from `rope_tables`.
          segment_ids_BxS: see `Documents`.
          gates: those of width.
          positions_BxS: of the tokens, with a cache.
          layer_gate: scalar, this layer's.
          cache: this layer's, [B, K, T, D] each; None: the row is all there is.
        """
        m = self.model
        attention_norm = declare_norm(self, "attention_norm", {STREAM: m.embed})
        mlp_norm = declare_norm(self, "mlp_norm", {STREAM: m.embed})
        attention = Attention(m, self.compute, self.head_norms, name="attention")
        mlp = Mlp(m, self.compute, name="mlp")

        def add(x_BxSxE: jax.Array, out_BxSxE: jax.Array) -> jax.Array:
            x_BxSxE = x_BxSxE + gated(gated(out_BxSxE, gates.embed_E), layer_gate)
            return constrain(x_BxSxE, ("batch", "residual_length", "features"))

        def norm(scale_E: jax.Array) -> jax.Array:
            return gather_residual(rms_norm(x_BxSxE, scale_E, m.norm_eps))

        out_BxSxE, cache = attention(
            norm(attention_norm), rope, segment_ids_BxS, gates.heads_H, cache, positions_BxS
        )
        x_BxSxE = add(x_BxSxE, out_BxSxE)
        return add(x_BxSxE, mlp(norm(mlp_norm), gates.mlp_M)), cache
