"""Standard errors against textbook formulas, the bootstrap and their coverage."""

import dataclasses
import json
import math
import statistics

import numpy as np
import pytest

from prts_jax.evaluate import scores as request_scores
from prts_jax.evaluate.scores import Estimate, Scores, from_harness, mean_of

RIGHT = [1, 0, 1, 1, 0, 1, 1, 0, 1, 1]
OTHER = [1, 1, 1, 1, 0, 1, 0, 1, 1, 1]


def scores(values, weights=None, requests="asked", subject="piqa", exponential=False):
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    return Scores("piqa", "acc,none", values, weights, subject, requests, exponential)


def rows_of_text(seed, rows=400):
    """Losses of rows of unequal length, and what a better model has on the same rows."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(5, 200, rows).astype(float)
    hardness = rng.normal(3, 0.5, rows)
    one = tokens * hardness + rng.normal(0, 1, rows)
    return tokens, one, one - tokens * rng.normal(0.05, 0.05, rows)


def bootstrap(statistic, rows, draws=4000):
    rng = np.random.default_rng(7)
    return statistics.stdev(statistic(rng.integers(0, rows, rows)) for _ in range(draws))


def test_an_accuracy_has_the_standard_error_of_a_mean():
    actual = scores(RIGHT).estimate
    assert actual.value == pytest.approx(0.7)
    assert actual.stderr == pytest.approx(statistics.stdev(RIGHT) / math.sqrt(10))
    assert actual.half_width == pytest.approx(1.96 * actual.stderr, rel=1e-4)


def test_the_standard_error_equals_the_harnesss():
    metrics = pytest.importorskip("lm_eval.api.metrics")
    assert scores(RIGHT).estimate.stderr == pytest.approx(metrics.mean_stderr(RIGHT))


def test_equal_requests_are_paired():
    actual = scores(OTHER).minus(scores(RIGHT))
    changes = [one - other for one, other in zip(OTHER, RIGHT, strict=True)]
    assert actual.value == pytest.approx(statistics.mean(changes))
    assert actual.stderr == pytest.approx(statistics.stdev(changes) / math.sqrt(10))
    # Miller's form of it: both variances less twice the covariance.
    covariance = statistics.covariance(OTHER, RIGHT)
    parts = statistics.variance(OTHER) + statistics.variance(RIGHT) - 2 * covariance
    assert actual.stderr == pytest.approx(math.sqrt(parts / 10))


def test_different_requests_add_their_variances():
    one, other = scores(OTHER, requests="others"), scores(RIGHT)
    actual = one.minus(other)
    assert not one.pairs_with(other)
    assert actual.stderr == pytest.approx(
        math.sqrt((statistics.variance(OTHER) + statistics.variance(RIGHT)) / 10)
    )


def test_different_measures_are_not_compared():
    assert scores(OTHER, subject="piqa, 5 shots").minus(scores(RIGHT)) is None


@pytest.mark.parametrize("exponential", [False, True], ids=["loss", "perplexity"])
def test_the_error_of_a_loss_equals_the_bootstraps(exponential):
    tokens, one, better = rows_of_text(seed=1)

    def score(losses, chosen):
        ratio = losses[chosen].sum() / tokens[chosen].sum()
        return math.exp(ratio) if exponential else ratio

    first = scores(one, tokens, exponential=exponential)
    second = scores(better, tokens, exponential=exponential)
    everything = np.arange(len(tokens))
    assert first.estimate.value == pytest.approx(score(one, everything))
    drawn = bootstrap(lambda chosen: score(one, chosen), len(tokens))
    assert first.estimate.stderr == pytest.approx(drawn, rel=0.06)
    change = second.minus(first)
    assert change.value == pytest.approx(score(better, everything) - score(one, everything))
    drawn = bootstrap(lambda chosen: score(better, chosen) - score(one, chosen), len(tokens))
    assert change.stderr == pytest.approx(drawn, rel=0.06)
    assert change.excludes_zero
    apart = dataclasses.replace(second, requests="others").minus(first)
    assert apart.stderr > 5 * change.stderr  # what is hard for both does not cancel
    assert not apart.excludes_zero


def test_95_percent_of_intervals_contain_the_truth():
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(2000):
        tokens = rng.integers(1, 50, 200).astype(float)
        actual = scores(tokens * rng.normal(2.0, 1.0, 200), tokens).estimate
        held += abs(actual.value - 2.0) <= actual.half_width
    assert 0.93 <= held / 2000 <= 0.965


def test_one_request_has_no_standard_error():
    actual = scores([1]).estimate
    assert math.isnan(actual.stderr)
    assert not actual.excludes_zero
    assert actual.to_json() == {"value": 1.0, "stderr": None, "low": None, "high": None}


def test_the_error_of_a_mean_of_tasks():
    actual = mean_of([Estimate(0.5, 0.03), Estimate(0.7, 0.04)])
    assert actual == Estimate(pytest.approx(0.6), pytest.approx(0.025))


def test_a_constant_difference_excludes_zero():
    assert scores([2, 2, 2]).minus(scores([1, 1, 1])).excludes_zero
    assert not scores([1, 1, 1]).minus(scores([1, 1, 1])).excludes_zero


def test_scores_round_trip_through_json():
    tokens, losses, _ = rows_of_text(seed=2, rows=9)
    for built in (scores(RIGHT), scores(losses, tokens, exponential=True)):
        actual = request_scores.from_json(json.loads(json.dumps(built.to_json())))
        assert actual.minus(built) == Estimate(0.0, 0.0)
        assert actual.pairs_with(built)
        assert actual.group == built.group
    assert "weights" not in scores(RIGHT).to_json()


@pytest.mark.parametrize(
    "damage", [{"values": [[1.0]]}, {"values": []}, {"weights": [1.0]}, {"values": ["x"]}]
)
def test_invalid_scores_are_refused(damage):
    with pytest.raises(ValueError, match=r"values and weights|could not convert"):
        request_scores.from_json(scores(RIGHT).to_json() | damage)


SAMPLES = [
    {
        "filter": "none",
        "doc_hash": f"doc{at}",
        "prompt_hash": "p",
        "target_hash": "t",
        "acc": float(at % 2),
        "ll": -1.0 - at,
        "word_perplexity": (-6.0 * at - 1, 3 + at),
        "bits_per_byte": (-6.0 * at - 1, 12 + at),
        "f1": (at % 2, 1),
    }
    for at in range(5)
]
NATS = sum(6.0 * at + 1 for at in range(5))
RESULTS = {
    "alias": "mine",
    "sample_len": 5,
    "acc,none": 0.4,
    "acc_stderr,none": "N/A",
    "ll,none": math.exp(3.0),
    "word_perplexity,none": math.exp(NATS / 25),
    "bits_per_byte,none": NATS / 70 / math.log(2),
    "f1,none": 2 / 3,
    "acc,other": 0.1,
}


def test_harness_metrics_become_the_matching_means():
    actual = {one.name: one for one in from_harness("mine", RESULTS, SAMPLES, 1, 0)}
    assert list(actual) == ["acc,none", "ll,none", "word_perplexity,none", "bits_per_byte,none"]
    for name, scores in actual.items():
        assert scores.estimate.value == pytest.approx(RESULTS[name])
    assert actual["word_perplexity,none"].exponential
    assert actual["ll,none"].exponential
    assert actual["acc,none"].weights.tolist() == [1] * 5
    assert actual["bits_per_byte,none"].weights.tolist() == [12, 13, 14, 15, 16]


def test_version_and_shots_distinguish_measures_and_digests_requests():
    one = from_harness("mine", RESULTS, SAMPLES, 1, 0)[0]
    again = from_harness("mine", RESULTS, SAMPLES, 1, 0)[0]
    assert one.minus(again).value == 0
    assert one.pairs_with(again)
    assert one.minus(from_harness("mine", RESULTS, SAMPLES, 2, 0)[0]) is None
    assert one.minus(from_harness("mine", RESULTS, SAMPLES, 1, 5)[0]) is None
    changed = [{**sample, "doc_hash": "x"} for sample in SAMPLES]
    other = from_harness("mine", RESULTS, changed, 1, 0)[0]
    assert not one.pairs_with(other)
    assert one.minus(other) is not None
