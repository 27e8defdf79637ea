"""Next-token cross-entropy as sums, so that each mean is taken once, over all tokens."""

import jax
import jax.numpy as jnp


def token_losses(logits_BxSxV: jax.Array, targets_BxS: jax.Array, z_loss: float = 0.0) -> jax.Array:
    """Returns the negative log-likelihood of each target, in nats, computed in float32.

    Args:
      logits_BxSxV: float32.
      targets_BxS: int32 token ids.
      z_loss: weight of log² Z, Z the softmax's normaliser; it adds to the gradient and not to the
        value, so that losses stay comparable (PaLM, arXiv 2204.02311: 1e-4).

    Returns:
      [B, S] float32.
    """
    log_normaliser = jax.nn.logsumexp(logits_BxSxV, axis=-1)
    # A masked sum stays where the vocabulary is sharded; a gather would not.
    is_target = targets_BxS[..., None] == jnp.arange(logits_BxSxV.shape[-1])
    picked = jnp.where(is_target, logits_BxSxV, 0.0).sum(axis=-1)
    losses = log_normaliser - picked
    if z_loss:
        extra = z_loss * log_normaliser**2
        losses = losses + (extra - jax.lax.stop_gradient(extra))
    return losses


def loss_by_source(
    losses_BxS: jax.Array, weights_BxS: jax.Array, source_ids_BxS: jax.Array, sources: int
) -> tuple[jax.Array, jax.Array]:
    """Sums losses and weights by the source of each target token.

    Args:
      losses_BxS: nats.
      weights_BxS: weight of each token; 0 for padding.
      source_ids_BxS: int32 in [0, sources).
      sources: number of sources.

    Returns:
      (weighted losses [sources], weights [sources]), float32.
    """
    one_hot = jax.nn.one_hot(source_ids_BxS, sources, dtype=jnp.float32)
    weighted = one_hot * weights_BxS[..., None]
    # Not a matrix product, which TPUs would round to bfloat16.
    return (losses_BxS[..., None] * weighted).sum((0, 1)), weighted.sum((0, 1))
