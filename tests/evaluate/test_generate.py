"""Generation with a cache against the whole model run anew for every token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.errors import UserError
from prts_jax.evaluate.generate import GREEDY, Generator, Sampling, choose
from prts_jax.evaluate.scoring import bucket
from prts_jax.model.architecture import declare, logits
from prts_jax.model.initialise import init_params

FLOAT32 = ComputeConfig(dtype="float32", attention="xla")
MODEL = ModelConfig(vocab=31, layers=2, embed=16, heads=4, kv_heads=2, head_dim=8, mlp=24)
PROMPTS = [[3], [5, 6, 7, 8, 9], [1, 2] * 20]


@pytest.fixture(scope="module")
def params():
    built = init_params(declare(MODEL), MODEL.layers, "paper", 3, None)
    return jax.tree.map(lambda leaf: leaf * 3, built)  # away from a flat distribution


@pytest.fixture(scope="module")
def generator(params):
    return Generator(params, MODEL, FLOAT32)


def anew(params, prompt, count):
    """Greedy tokens by the whole model on the whole row, every time."""
    row = list(prompt)
    run = jax.jit(logits, static_argnums=(2, 3))
    for _ in range(count):
        padded = jnp.asarray([row + [0] * (64 - len(row))], jnp.int32)
        row.append(int(run(params, padded, MODEL, FLOAT32)[0, len(row) - 1].argmax()))
    return row[len(prompt) :]


def test_a_batch_of_different_lengths_equals_single_rows(params, generator):
    actual = np.stack(list(generator.stream(PROMPTS, 12)), axis=1)
    for row, prompt in zip(actual, PROMPTS, strict=True):
        assert row.tolist() == anew(params, prompt, 12)
        alone = [int(token[0]) for token in generator.stream([prompt], 12)]
        assert alone == row.tolist()


def test_generation_stops_when_all_rows_have_a_stop_token(generator):
    whole = [int(token[0]) for token in generator.stream([[3]], 12)]
    stopped = [int(token[0]) for token in generator.stream([[3]], 12, stop={whole[4]})]
    assert stopped == whole[: whole.index(whole[4]) + 1]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.9), Sampling(1e-30), Sampling(1e30)])
def test_ids_without_a_piece_are_never_chosen(params, generator, sampling):
    """The likeliest ids of every step are taken away from the tokenizer."""
    likeliest = {int(token[0]) for token in generator.stream([[3]], 12)}
    pieces = set(range(MODEL.vocab)) - likeliest
    limited = Generator(params, MODEL, FLOAT32, pieces)
    chosen = [int(token[0]) for token in limited.stream([[3]], 12, sampling=sampling)]
    assert set(chosen) <= pieces


def test_draws_depend_on_the_seed(generator):
    def drawn(seed):
        return [int(t[0]) for t in generator.stream([[3]], 8, sampling=Sampling(1.0, 1.0, seed))]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_nucleus_sampling_draws_from_the_likeliest_in_proportion():
    probabilities = np.array([0.05, 0.4, 0.25, 0.2, 0.1])
    rows = jnp.log(jnp.tile(jnp.asarray(probabilities, jnp.float32), (4000, 1)))
    drawn = np.asarray(choose(rows, 0, Sampling(1.0, 0.7, 0)))
    share = np.bincount(drawn, minlength=5) / len(drawn)
    # 0.4 and 0.25 are less than 0.7, so the third is in and the rest is out.
    np.testing.assert_allclose(share, np.array([0, 0.4, 0.25, 0.2, 0]) / 0.85, atol=0.03)
    hot = np.asarray(choose(rows, 0, Sampling(2.0, 1.0, 0)))
    flat = np.sqrt(probabilities) / np.sqrt(probabilities).sum()
    np.testing.assert_allclose(np.bincount(hot, minlength=5) / len(hot), flat, atol=0.03)


@pytest.mark.parametrize(
    ("prompts", "message"), [([[]], "is empty"), ([[31]], "has token 31"), ([[-1, 2]], "token 2")]
)
def test_empty_prompts_and_unknown_tokens_are_refused(generator, prompts, message):
    with pytest.raises(UserError, match=message):
        next(generator.stream(prompts, 3))


@pytest.mark.parametrize(
    "values", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}]
)
def test_sampling_outside_its_ranges_is_refused(values):
    with pytest.raises(UserError, match="must be"):
        Sampling(**values)


def test_buckets_hold_the_length_and_are_few():
    for length in range(1, 3000):
        size = bucket(length)
        assert size >= length
        assert size == 32 or size <= 1.5 * length
    assert len({bucket(length) for length in range(1, 3000)}) == 14
    assert bucket(100, largest=100) == 100
    assert bucket(101, largest=100) == 128


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e39, 1e308])
def test_extreme_temperatures_draw_from_the_allowed_tokens(temperature: float) -> None:
    logits = jnp.broadcast_to(jnp.asarray([-jnp.inf, 1.0, 3.0, 2.0]), (200, 4))
    drawn = set(np.asarray(choose(logits, 0, Sampling(temperature))).tolist())
    assert drawn == ({2} if temperature < 1 else {1, 2, 3})


@pytest.mark.parametrize("top_p", [1e-300, 1e-45, 0.3])
def test_a_small_top_p_leaves_the_likeliest_token(top_p: float) -> None:
    logits = jnp.broadcast_to(jnp.asarray([-jnp.inf, 1.0, 3.0, 2.0]), (50, 4))
    assert set(np.asarray(choose(logits, 0, Sampling(1.0, top_p))).tolist()) == {2}
