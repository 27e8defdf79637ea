"""Results of checkpoints: saved, read, labelled and compared."""

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest

from prts_jax.errors import UserError
from prts_jax.evaluate import paper_benchmarks, results
from prts_jax.evaluate.results import Results, rows_of
from prts_jax.evaluate.scores import ALL, BITS, LOSS, Scores

SCORES = Scores("loss", "all", np.array([1.5, 2.5]), np.array([3.0, 4.0]), "tokens", "rows")
RESULTS = Results("step", "runs/a", {"loss": 4 / 7}, (SCORES,))


def test_saved_results_are_read_back(tmp_path: Path) -> None:
    results.save(RESULTS, str(tmp_path / "new" / "a.json"))
    actual = results.load(str(tmp_path / "new" / "a.json"))
    assert (actual.label, actual.checkpoint, actual.figures) == ("a", "runs/a", {"loss": 4 / 7})
    [scores] = actual.scores
    assert scores.pairs_with(SCORES)
    assert scores.values.tolist() == [1.5, 2.5]
    assert results.load(f"base={tmp_path / 'new' / 'a.json'}").label == "base"


def test_a_file_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(UserError, match=r"a\.json: exists; results are not overwritten"):
        results.save(RESULTS, str(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_text() == "mine"


def test_an_unwritable_file_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as no:
        results.save(RESULTS, str(tmp_path / "file" / "a.json"))
    assert "\n" not in str(no.value)


def test_shared_labels_become_the_arguments(tmp_path: Path) -> None:
    files = [str(tmp_path / day / "a.json") for day in ("monday", "tuesday")]
    for file in files:
        results.save(RESULTS, file)
    actual = results.with_unique_labels([results.load(file) for file in files], files)
    assert [one.label for one in actual] == files
    with pytest.raises(UserError, match="is named twice"):
        results.with_unique_labels([RESULTS, RESULTS], ["a", "a"])


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": "prts-eval-1"})])
def test_files_without_results_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="holds no results"):
        results.load(str(tmp_path / "a.json"))


REQUESTS = 40


def paper_results(label, seed, requests="asked"):
    """Made-up scores of the eight benchmarks, in an order that is not the paper's."""
    rng = np.random.default_rng(seed)
    tasks, scores = {}, []
    for benchmark in reversed(paper_benchmarks.BENCHMARKS):
        values, weights = rng.integers(0, 2, REQUESTS).astype(float), np.ones(REQUESTS)
        if not benchmark.percent:
            values, weights = rng.normal(60, 5, REQUESTS), rng.integers(15, 25, REQUESTS) * 1.0
        built = Scores(
            benchmark.task,
            benchmark.metric,
            values,
            weights,
            subject=benchmark.task,
            requests=requests,
            exponential=not benchmark.percent,
        )
        scores.append(built)
        tasks[benchmark.task] = {
            "version": 1,
            benchmark.metric: built.estimate.value,
            benchmark.metric.replace(",", "_stderr,"): built.estimate.stderr,
        }
    tasks["a_group"] = {"acc,none": 0.5, "sample_len": 3, "version": 2}
    return Results(label, f"runs/{label}", {"tasks": tasks}, tuple(scores))


def loss_results(label, losses, tokens, asked="tokens", text="text"):
    built = [
        Scores(LOSS, ALL, np.asarray(losses), np.asarray(tokens), asked, asked),
        Scores(BITS, ALL, np.asarray(losses) / math.log(2), np.asarray(tokens) * 4, text, asked),
    ]
    return Results(label, label, {"loss": 0.0}, tuple(built))


def test_rows_are_in_the_papers_order():
    rows = rows_of([paper_results("base", 0), paper_results("grown", 1)])
    assert [row.title for row in rows] == [
        "LAMBADA",
        "ARC-challenge",
        "ARC-easy",
        "LogiQA",
        "PIQA",
        "SciQ",
        "WinoGrande",
        "average of seven",
        "Wikitext perplexity",
        "a_group acc",
    ]
    assert [row.percent for row in rows] == [True] * 8 + [False, True]


def test_the_average_and_its_error_are_over_seven_accuracies():
    measured = [paper_results("base", 0), paper_results("grown", 1)]
    rows = {row.title: row for row in rows_of(measured)}
    values = {one.group: [r.scores for r in measured] for one in measured[0].scores}
    assert len(values) == 8
    accuracies = [
        [{s.group: s.values for s in one.scores}[b.task] for b in paper_benchmarks.BENCHMARKS[:7]]
        for one in measured
    ]
    average = rows["average of seven"]
    for actual, tasks in zip(average.scores, accuracies, strict=True):
        assert actual.value == pytest.approx(statistics.mean(task.mean() for task in tasks))
        variances = [statistics.variance(task.tolist()) / REQUESTS for task in tasks]
        assert actual.stderr == pytest.approx(math.sqrt(sum(variances)) / 7)
    changes = [other - one for one, other in zip(*accuracies, strict=True)]
    actual = average.differences[1]
    assert actual.value == pytest.approx(statistics.mean(change.mean() for change in changes))
    variances = [statistics.variance(change.tolist()) / REQUESTS for change in changes]
    assert actual.stderr == pytest.approx(math.sqrt(sum(variances)) / 7)
    assert average.paired == (False, True)
    assert average.differences[0] is None


def test_the_average_requires_all_seven():
    whole, less = paper_results("whole", 0), paper_results("less", 1)
    less = Results(
        "less", "less", {"tasks": {}}, tuple(s for s in less.scores if s.group != "sciq")
    )
    less.figures["tasks"].update({s.group: {s.name: s.estimate.value} for s in less.scores})
    rows = {row.title: row for row in rows_of([whole, less])}
    assert rows["average of seven"].scores[0] is not None
    assert rows["average of seven"].scores[1] is rows["average of seven"].differences[1] is None
    assert rows["SciQ"].scores[1] is None
    assert "average of seven" not in {row.title for row in rows_of([less])}


def test_different_requests_are_compared_unpaired():
    rows = rows_of([paper_results("all", 0), paper_results("limited", 1, requests="fewer")])
    assert rows[0].paired == (False, False)
    assert rows[0].differences[1] is not None
    assert rows[0].to_json()["differences"][1]["paired"] is False


def test_losses_of_the_same_tokens_are_paired():
    tokens = [10.0, 20.0, 30.0]
    one, other = [30.0, 61.0, 92.0], [29.0, 58.5, 89.0]
    rows = {
        row.group: row
        for row in rows_of([loss_results("a", one, tokens), loss_results("b", other, tokens)])
    }
    assert list(rows) == [LOSS, "perplexity", BITS]
    change = rows[LOSS].differences[1]
    assert change.value == pytest.approx(sum(other) / 60 - sum(one) / 60)
    assert rows[LOSS].paired[1]
    assert change.excludes_zero
    assert rows["perplexity"].scores[0].value == pytest.approx(math.exp(sum(one) / 60))


def test_different_tokens_of_one_text_are_compared_in_bits_only():
    a = loss_results("a", [30.0, 61.0, 92.0], [10.0, 20.0, 30.0], asked="of one tokenizer")
    b = loss_results("b", [50.0, 90.0], [30.0, 35.0], asked="of another")
    rows = {row.group: row for row in rows_of([a, b])}
    assert rows[LOSS].differences[1] is rows["perplexity"].differences[1] is None
    bits = rows[BITS].differences[1]
    assert bits.value == pytest.approx((140 / 260 - 183 / 240) / math.log(2))
    assert not rows[BITS].paired[1]


def test_a_metric_that_is_no_mean_of_requests_has_no_interval():
    row = rows_of([paper_results("a", 0), paper_results("b", 1)])[-1]
    assert row.scores[0].value == 0.5
    assert row.to_json()["scores"][0]["stderr"] is None
    assert row.differences == (None, None)
