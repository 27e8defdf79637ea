"""Results of checkpoints: saved to files, and compared with the first one measure by measure."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from prts_jax.errors import UserError, one_line, storage_errors
from prts_jax.evaluate import paper_benchmarks
from prts_jax.evaluate import scores as request_scores
from prts_jax.evaluate.scores import ALL, BITS, LOSS, Estimate, Scores, mean_of
from prts_jax.paths import as_path, check_output, make_folders, write_atomically

FORMAT = "prts-eval-1"
PERPLEXITY = "perplexity"
PERCENT = ("acc", "exact_match")
"""Prefixes of metrics that are shares, shown as percentages."""


@dataclass(frozen=True)
class Results:
    """The results of a checkpoint: the object of `prts eval --json`, and scores by request."""

    label: str
    checkpoint: str
    figures: dict[str, Any]
    scores: tuple[Scores, ...] = field(repr=False)


def save(results: Results, path: str) -> None:
    """Writes results to a new file, atomically.

    Raises:
      UserError: the file exists or cannot be written.
    """
    values = {
        "format": FORMAT,
        "checkpoint": results.checkpoint,
        "results": results.figures,
        "scores": [scores.to_json() for scores in results.scores],
    }
    _refuse_existing(path)
    with storage_errors(f"--save={path}: cannot be written"):
        make_folders(as_path(path).parent)
        write_atomically(path, json.dumps(values) + "\n")


def check_new(path: str) -> None:
    """Refuses a file that `save` cannot write, before results are computed for it.

    Raises:
      UserError: the file exists or cannot be written.
      StorageError: the disk is full, or the storage failed.
    """
    _refuse_existing(path)
    check_output(path, f"--save={path}")


def _refuse_existing(path: str) -> None:
    with storage_errors(f"--save={path}: cannot be written"):
        exists = as_path(path).exists()
    if exists:
        raise UserError(f"--save={path}: exists; results are not overwritten, name another file")


def load(argument: str) -> Results:
    """Reads saved results: `FILE`, whose label is its name without ending, or `label=FILE`.

    Raises:
      UserError: the file does not exist or `save` did not write it.
    """
    label, equals, path = argument.partition("=")
    if not equals or ("://" not in path and as_path(argument).exists()):
        label, path = PurePath(argument).stem, argument
    try:
        values = json.loads(as_path(path).read_text())
        if values["format"] != FORMAT:
            raise ValueError(f"its format is {values['format']!r}, not {FORMAT!r}")
        scores = tuple(request_scores.from_json(one) for one in values["scores"])
        return Results(one_line(label), str(values["checkpoint"]), dict(values["results"]), scores)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); name a file of `prts eval --save`"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: holds no results ({error}); name a file that `prts eval --save` wrote"
        ) from error


def with_unique_labels(results: Sequence[Results], arguments: Sequence[str]) -> list[Results]:
    """Returns results in which shared labels are replaced by the command line's arguments.

    Raises:
      UserError: two arguments are the same.
    """
    labels = [one.label for one in results]
    for argument in arguments:
        if arguments.count(argument) > 1:
            raise UserError(f"{argument}: is named twice; name different ones, or one alone")
    return [
        dataclasses.replace(one, label=one_line(argument)) if labels.count(one.label) > 1 else one
        for one, argument in zip(results, arguments, strict=True)
    ]


@dataclass(frozen=True)
class Row:
    """One measure of all checkpoints.

    Attributes:
      title: the paper's name of its benchmarks, else task and metric.
      percent: whether the scores are shares.
      differences: each checkpoint's score minus the first's; None for the first, and where one is
        missing or they were measured on different data.
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
        return {
            "title": self.title,
            "group": self.group,
            "name": self.name,
            "scores": [one and one.to_json() for one in self.scores],
            "differences": [
                one and {**one.to_json(), "paired": paired, "excludes_zero": one.excludes_zero}
                for one, paired in zip(self.differences, self.paired, strict=True)
            ],
        }


@dataclass(frozen=True)
class _Measured:
    """A measure of one checkpoint; requests is None if it is no mean over them."""

    estimate: Estimate
    requests: Scores | None


def rows_of(results: Sequence[Results]) -> list[Row]:
    """Returns the paper's benchmarks in its order, their average, other tasks, and losses.

    Differences are to the first checkpoint.
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
    measured: dict[tuple[str, str], _Measured] = {}
    for group, name, value in _task_values(results.figures.get("tasks", {})):
        requests = by_name.get((group, name))
        estimate = Estimate(value, math.nan) if requests is None else requests.estimate
        measured[group, name] = _Measured(estimate, requests)
    for group in (LOSS, BITS):
        for requests in (one for one in results.scores if one.group == group):
            measured[group, requests.name] = _Measured(requests.estimate, requests)
            if (group, requests.name) == (LOSS, ALL):
                whole = dataclasses.replace(requests, group=PERPLEXITY, exponential=True)
                measured[PERPLEXITY, ALL] = _Measured(whole.estimate, whole)
    return measured


def _task_values(tasks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, str, float]]:
    for task, metrics in tasks.items():
        for name, value in metrics.items():
            shown = isinstance(value, float) and "_stderr," not in name
            if shown and task != paper_benchmarks.AVERAGE:
                yield task, name, value


def _row(name: tuple[str, str], measured: Sequence[_Measured | None]) -> Row:
    group, measure = name
    metric = measure.removesuffix(",none")
    first = measured[0].requests if measured[0] else None
    differences: list[Estimate | None] = [None]
    paired = [False]
    for one in measured[1:]:
        other = one.requests if one else None
        differences.append(other.minus(first) if first and other else None)
        paired.append(bool(first and other and other.pairs_with(first)))
    return Row(
        title=f"{group} {metric}",
        group=group,
        name=measure,
        percent=metric.startswith(PERCENT),
        scores=tuple(one.estimate if one else None for one in measured),
        differences=tuple(differences),
        paired=tuple(paired),
    )


def _average(rows: Sequence[Row]) -> Row | None:
    """Returns the mean of the paper's accuracies, which are independent; None if one is missing."""
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
