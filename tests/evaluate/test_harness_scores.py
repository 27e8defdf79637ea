"""What the harness logs, as scores: means, perplexities by word, and what is no mean."""

import math

import pytest

from prts_jax.evaluate.harness_scores import scores_of

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


def test_each_metric_is_the_mean_that_gives_the_harnesss_figure():
    found = {one.name: one for one in scores_of("mine", RESULTS, SAMPLES, 1, 0)}
    assert list(found) == ["acc,none", "ll,none", "word_perplexity,none", "bits_per_byte,none"]
    for name, scores in found.items():
        assert scores.estimate.value == pytest.approx(RESULTS[name])
    assert found["word_perplexity,none"].exponential
    assert found["ll,none"].exponential
    assert found["acc,none"].weights.tolist() == [1] * 5
    assert found["bits_per_byte,none"].weights.tolist() == [12, 13, 14, 15, 16]


def test_version_and_shots_make_another_measure_and_other_requests_another_pair():
    one = scores_of("mine", RESULTS, SAMPLES, 1, 0)[0]
    again = scores_of("mine", RESULTS, SAMPLES, 1, 0)[0]
    assert one.minus(again).value == 0
    assert one.pairs_with(again)
    assert one.minus(scores_of("mine", RESULTS, SAMPLES, 2, 0)[0]) is None
    assert one.minus(scores_of("mine", RESULTS, SAMPLES, 1, 5)[0]) is None
    changed = [{**sample, "doc_hash": "x"} for sample in SAMPLES]
    other = scores_of("mine", RESULTS, changed, 1, 0)[0]
    assert not one.pairs_with(other)
    assert one.minus(other) is not None
