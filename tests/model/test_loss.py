"""Cross-entropy against a log-softmax written out in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prts_jax.model.loss import loss_by_source, token_losses


def by_hand(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    scores = logits.astype(np.float64)
    out = np.zeros(targets.shape)
    for spot in np.ndindex(*targets.shape):
        row = scores[spot] - scores[spot].max()
        out[spot] = np.log(np.exp(row).sum()) - row[targets[spot]]
    return out


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 30.0]))
def test_token_losses_are_negative_log_softmax(seed, scale):
    random = np.random.default_rng(seed)
    logits = (scale * random.standard_normal((2, 3, 11))).astype(np.float32)
    targets = random.integers(0, 11, (2, 3)).astype(np.int32)
    losses = token_losses(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_allclose(losses, by_hand(logits, targets), rtol=1e-5, atol=1e-5)


def test_large_logits_do_not_overflow():
    logits = jnp.asarray([[[1e4, 0.0, -1e4]]], jnp.float32)
    assert float(token_losses(logits, jnp.asarray([[0]]))[0, 0]) == 0.0
    assert float(token_losses(logits, jnp.asarray([[2]]))[0, 0]) == pytest.approx(2e4)


def test_gradient_is_softmax_minus_one_hot():
    random = np.random.default_rng(0)
    logits = random.standard_normal((1, 2, 5)).astype(np.float32)
    targets = np.array([[3, 0]], np.int32)
    gradient = jax.grad(lambda x: token_losses(x, jnp.asarray(targets)).sum())(jnp.asarray(logits))
    softmax = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(gradient, softmax - np.eye(5)[targets], atol=1e-6)


def test_z_loss_adds_to_the_gradient_alone():
    """The gradient is that of loss + weight · log² Z, by central differences in float64."""
    random = np.random.default_rng(1)
    logits = random.standard_normal((1, 2, 5))
    targets, weight = np.array([[1, 4]]), 0.3
    given, chosen = jnp.float32(logits), jnp.asarray(targets)
    plain, with_z = (token_losses(given, chosen, z) for z in (0.0, weight))
    np.testing.assert_array_equal(plain, with_z)
    gradient = jax.grad(lambda x: token_losses(x, chosen, weight).sum())(given)

    def total(x: np.ndarray) -> float:
        log_z = np.log(np.exp(x).sum(-1))
        return float(by_hand(x, targets).sum() + weight * (log_z**2).sum())

    for spot in np.ndindex(*logits.shape):
        step = np.zeros_like(logits)
        step[spot] = 1e-5
        slope = (total(logits + step) - total(logits - step)) / 2e-5
        assert float(gradient[spot]) == pytest.approx(slope, abs=1e-4)


def test_loss_by_source_adds_up_each_source_by_weight():
    random = np.random.default_rng(0)
    losses = random.random((4, 6)).astype(np.float32)
    weights = random.choice([0.0, 0.5, 1.0], (4, 6)).astype(np.float32)
    sources = random.integers(0, 3, (4, 6)).astype(np.int32)
    summed, counted = loss_by_source(
        jnp.asarray(losses), jnp.asarray(weights), jnp.asarray(sources), 5
    )
    for source in range(5):
        here = sources == source
        assert float(summed[source]) == pytest.approx((losses * weights)[here].sum(), rel=1e-5)
        assert float(counted[source]) == pytest.approx(weights[here].sum())
