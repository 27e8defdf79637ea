"""Log-likelihoods of continuations against the whole model run on one request at a time."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.evaluate.loaded import LoadedModel, load
from prts_jax.evaluate.scoring import Scorer
from prts_jax.model.architecture import logits

LONGEST = 40


@pytest.fixture(scope="module")
def loaded(words: Path) -> LoadedModel:
    return load(str(words / "model"), "float32", attention="xla")


def alone(loaded: LoadedModel, context: list[int], after: list[int]) -> tuple[float, bool]:
    """The last LONGEST + 1 tokens, in float64 from the logits on."""
    kept = [*context, *after][-(LONGEST + 1) :]
    scored = min(len(after), len(kept) - 1)
    given = jnp.asarray([kept[:-1] + [0] * (LONGEST + 1 - len(kept))], jnp.int32)
    run = jax.jit(logits, static_argnums=(2, 3))
    scores = np.asarray(run(loaded.params, given, loaded.model, loaded.compute)[0], np.float64)
    total, greedy = 0.0, True
    for spot in range(len(kept) - 1 - scored, len(kept) - 1):
        target = kept[spot + 1]
        total += scores[spot][target] - np.log(np.exp(scores[spot]).sum())
        greedy &= int(scores[spot].argmax()) == target
    return total, greedy


def test_batched_scores_equal_single_ones(loaded: LoadedModel) -> None:
    rng = np.random.default_rng(2)

    def some(low: int, high: int) -> list[int]:
        return rng.integers(0, 48, rng.integers(low, high)).tolist()

    requests = [(some(1, 30), some(1, 5)) for _ in range(7)]
    requests.append((some(50, 51), some(3, 4)))  # loses its beginning
    requests.append((some(2, 3), some(60, 61)))  # is cut within what is scored
    # One that greedy decoding would have made.
    context = [5, 6, 7]
    run = jax.jit(logits, static_argnums=(2, 3))
    padded = jnp.asarray([context + [0] * (LONGEST - 3)], jnp.int32)
    likeliest = int(run(loaded.params, padded, loaded.model, loaded.compute)[0, 2].argmax())
    requests.append((context, [likeliest]))
    expected = [alone(loaded, *request) for request in requests]
    assert expected[-1][1]
    for rows in (1, 4):  # ten requests: the last batch of four is half padding
        told: list[int] = []
        actual = Scorer(loaded, rows, LONGEST).score(requests, told.append)
        np.testing.assert_allclose([f[0] for f in actual], [e[0] for e in expected], atol=2e-4)
        assert [f[1] for f in actual] == [e[1] for e in expected]
        assert sum(told) == len(requests)


def test_no_requests_have_no_scores(loaded: LoadedModel) -> None:
    assert Scorer(loaded, 4, LONGEST).score([]) == []


def test_scoring_compiles_once_per_bucket(loaded: LoadedModel) -> None:
    scorer = Scorer(dataclasses.replace(loaded), 2, LONGEST)
    scorer.score([([1], [2]), ([1, 2, 3], [4]), ([1] * 36, [2])])
    assert scorer._score._cache_size() == 2  # lengths of 32 and 40
