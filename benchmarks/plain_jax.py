"""A Llama and its training step in plain JAX and optax, as one would write them by hand.

The maths is that of `prts_jax.model.llama` with attention over whole rows: RMSNorm, rotary
embeddings in halves, grouped-query attention, SwiGLU, a head of its own; AdamW with clipping.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = dict[str, Any]


def norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    """Returns x over its root mean square, in the dtype of `x`."""
    wide = x.astype(jnp.float32)
    wide *= jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale).astype(x.dtype)


def rotate(x: jax.Array, theta: float) -> jax.Array:
    """Rotates [B, S, H, D] by position."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * theta ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def loss_of(params: Params, tokens: jax.Array, targets: jax.Array, eps: float, theta: float) -> Any:
    """Returns the mean loss of [B, S] targets, nats."""
    seen = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))

    def layer(x: jax.Array, p: Params) -> tuple[jax.Array, None]:
        attention, mlp = p["attention"], p["mlp"]
        y = norm(x, p["attention_norm"], eps)
        q, k, v = (jnp.einsum("bse,ehd->bshd", y, attention[name]) for name in "qkv")
        q, k = rotate(q, theta), rotate(k, theta)
        k, v = (jnp.repeat(z, q.shape[2] // z.shape[2], axis=2) for z in (k, v))
        scores = jnp.einsum("bshd,bthd->bhst", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        out = jnp.einsum("bhst,bthd->bshd", weights, v)
        x += jnp.einsum("bshd,hde->bse", out, attention["o"])
        y = norm(x, p["mlp_norm"], eps)
        return x + (jax.nn.silu(y @ mlp["gate"]) * (y @ mlp["up"])) @ mlp["down"], None

    x, _ = jax.lax.scan(layer, params["token_embedding"][tokens], params["layers"])
    logits = norm(x, params["final_norm"], eps) @ params["head"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


@functools.partial(jax.jit, static_argnums=(4, 5, 6), donate_argnums=(0, 1))
def train_step(
    params: Params,
    state: Any,
    tokens: jax.Array,
    targets: jax.Array,
    optimizer: optax.GradientTransformation,
    eps: float,
    theta: float,
) -> tuple[Params, Any, jax.Array]:
    """Returns the parameters and the optimizer's state after one step, and its loss."""
    loss, gradient = jax.value_and_grad(loss_of)(params, tokens, targets, eps, theta)
    updates, state = optimizer.update(gradient, state, params)
    return optax.apply_updates(params, updates), state, loss
