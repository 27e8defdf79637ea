"""Scores of one checkpoint or of several side by side, and what sets them apart from the first."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prts_jax.evaluate import paper_benchmarks
from prts_jax.evaluate.results import Results
from prts_jax.evaluate.scores import ALL, BITS, LOSS, Estimate, Scores, mean_of

PERPLEXITY = "perplexity"
PERCENT = ("acc", "exact_match")
"""Metrics whose names begin so are shares, shown as percentages."""


@dataclass(frozen=True)
class Row:
    """One measure of all checkpoints.

    Attributes:
      title: for people: the paper's name of its benchmarks, else the task and the metric.
      group: the task, or what `Scores.group` says.
      name: the metric, or the source.
      percent: whether the scores are shares.
      scores: of each checkpoint; None where it was not measured.
      differences: each checkpoint's score less the first's; None for the first, and where one is
        missing or they were measured on something else.
      paired: whether the interval of each difference is a paired one.
    """

    title: str
    group: str
    name: str
    percent: bool
    scores: tuple[Estimate | None, ...]
    differences: tuple[Estimate | None, ...]
    paired: tuple[bool, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON holds it; a difference says whether its interval excludes 0."""

        def difference(one: Estimate | None, paired: bool) -> dict[str, Any] | None:
            if one is None:
                return None
            return {**one.to_json(), "paired": paired, "excludes_zero": one.excludes_zero}

        return {
            "title": self.title,
            "group": self.group,
            "name": self.name,
            "scores": [None if one is None else one.to_json() for one in self.scores],
            "differences": [
                difference(one, paired)
                for one, paired in zip(self.differences, self.paired, strict=True)
            ],
        }


@dataclass(frozen=True)
class _Measured:
    """A measure of one checkpoint; requests is None where it is no mean of them."""

    estimate: Estimate
    requests: Scores | None


def rows_of(results: Sequence[Results]) -> list[Row]:
    """Returns the paper's benchmarks in its order, their average, other tasks, and losses.

    Args:
      results: of one checkpoint or more; differences are to the first.
    """
    measured = [_measured(one) for one in results]
    names = list(dict.fromkeys(name for one in measured for name in one))
    rows = {name: _row(name, [one.get(name) for one in measured]) for name in names}
    ordered: list[Row] = []
    for benchmark in paper_benchmarks.BENCHMARKS:
        row = rows.pop((benchmark.task, benchmark.metric), None)
        if row is not None:
            ordered.append(dataclasses.replace(row, title=benchmark.title))
    average = _average([row for row in ordered if row.percent])
    if average is not None:
        ordered.insert(sum(row.percent for row in ordered), average)
    return ordered + list(rows.values())


def _measured(results: Results) -> dict[tuple[str, str], _Measured]:
    by_name = {(one.group, one.name): one for one in results.scores}
    found: dict[tuple[str, str], _Measured] = {}
    for group, name, value in _values(results.found.get("tasks", {})):
        requests = by_name.get((group, name))
        estimate = Estimate(value, math.nan) if requests is None else requests.estimate
        found[group, name] = _Measured(estimate, requests)
    for group in (LOSS, BITS):
        for requests in (one for one in results.scores if one.group == group):
            found[group, requests.name] = _Measured(requests.estimate, requests)
            if (group, requests.name) == (LOSS, ALL):
                whole = dataclasses.replace(requests, group=PERPLEXITY, exponential=True)
                found[PERPLEXITY, ALL] = _Measured(whole.estimate, whole)
    return found


def _values(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, float]]:
    for task, metrics in tasks.items():
        for name, value in metrics.items():
            shown = isinstance(value, float) and "_stderr," not in name
            if shown and task != paper_benchmarks.AVERAGE:
                yield task, name, value


def _row(name: tuple[str, str], measured: Sequence[_Measured | None]) -> Row:
    group, measure = name
    metric = measure.removesuffix(",none")
    differences: list[Estimate | None] = [None]
    paired = [False]
    first = measured[0].requests if measured[0] else None
    for one in measured[1:]:
        other = one.requests if one else None
        if first is None or other is None:
            differences.append(None)
            paired.append(False)
        else:
            differences.append(other.minus(first))
            paired.append(other.pairs_with(first))
    return Row(
        title=f"{group} {metric}",
        group=group,
        name=measure,
        percent=metric.startswith(PERCENT),
        scores=tuple(None if one is None else one.estimate for one in measured),
        differences=tuple(differences),
        paired=tuple(paired),
    )


def _average(rows: Sequence[Row]) -> Row | None:
    """Returns the mean of the paper's accuracies; their requests are other ones, so independent."""
    if len(rows) < sum(benchmark.percent for benchmark in paper_benchmarks.BENCHMARKS):
        return None

    def over(columns: Sequence[tuple[Estimate | None, ...]]) -> tuple[Estimate | None, ...]:
        return tuple(
            mean_of(known) if len(known := [one for one in column if one]) == len(rows) else None
            for column in zip(*columns, strict=True)
        )

    return Row(
        title=paper_benchmarks.AVERAGE,
        group=paper_benchmarks.AVERAGE,
        name="acc,none",
        percent=True,
        scores=over([row.scores for row in rows]),
        differences=over([row.differences for row in rows]),
        paired=tuple(all(column) for column in zip(*(row.paired for row in rows), strict=True)),
    )
