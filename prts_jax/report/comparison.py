"""Several runs side by side: the data of the report's tables, figures and page."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prts_jax.evaluate.scores import finite
from prts_jax.report import speedup
from prts_jax.report.baseline import find_baseline, find_bases, seconds_before
from prts_jax.report.goodput import goodput
from prts_jax.report.runs import Run
from prts_jax.tree import flatten

SOURCE = "validation_loss/"
"""Prefix of the metrics that hold one source's validation loss."""

NEWEST = (
    "step",
    "stage_step",
    "tokens",
    "flops",
    "flops_6nd",
    "seconds",
    "loss",
    "validation_loss",
    "validation_perplexity",
    "mfu",
)
"""Metrics whose newest value the JSON report holds for each run."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs and their relations.

    Attributes:
      bases: by label, the run among `runs` that this one started from.
      baseline: the run that the others are measured against; None if the choice is ambiguous.
      levels: by label, the run against the baseline at several losses, the primary one first.
    """

    runs: Sequence[Run]
    bases: Mapping[str, Run]
    baseline: Run | None
    levels: Mapping[str, Sequence[speedup.Level]]
    notes: Sequence[str]

    def primary(self, run: Run) -> speedup.Level | None:
        """Returns the comparison at the baseline's lowest loss, or None if there is none."""
        return next(iter(self.levels.get(run.label, ())), None)

    def best_level(self) -> speedup.Level | None:
        """Returns the largest primary speed-up, which the figure shows.

        If no run has reached the baseline's lowest loss, returns the largest speed-up at the
        lowest loss that both have reached.
        """
        for rank in (0, 1):
            known = [
                levels[rank]
                for levels in self.levels.values()
                if len(levels) > rank and levels[rank].speedup is not None
            ]
            if known:
                return max(known, key=lambda level: level.speedup or 0.0)
        return None

    def sources(self) -> list[str]:
        """Returns the names of the validation sets that any run was evaluated on, sorted."""
        keys = {key for run in self.runs for row in run.rows for key in row}
        return sorted(key.removeprefix(SOURCE) for key in keys if key.startswith(SOURCE))

    def config_differences(self) -> dict[str, list[Any]]:
        """Returns, by dotted key, the values of all runs for the keys on which they differ.

        The value is None for a run whose config is not written yet or lacks the key.
        """
        flat = [
            {path.replace("/", "."): value for path, value in flatten(run.config).items()}
            for run in self.runs
        ]
        keys = sorted(set().union(*flat))
        values = {key: [config.get(key) for config in flat] for key in keys}
        return {key: row for key, row in values.items() if any(v != row[0] for v in row)}


def compare(runs: Sequence[Run], baseline: str | None = None) -> Comparison:
    """Relates runs to each other and to the one of the label `baseline`, see `find_baseline`.

    Raises:
      UserError: no run has the label `baseline`.
    """
    bases = find_bases(runs)
    chosen = find_baseline(runs, bases, baseline)
    base_labels = {base.label for base in bases.values()}
    levels = {
        run.label: speedup.compare(run, chosen)
        for run in runs
        if chosen is not None and run is not chosen and run.label not in base_labels
    }
    notes = [*_notes(runs, bases, chosen), *_decaying(runs, levels, chosen)]
    return Comparison(runs, bases, chosen, levels, notes)


def _decaying(
    runs: Sequence[Run], levels: Mapping[str, Sequence[speedup.Level]], baseline: Run | None
) -> list[str]:
    """Returns the reason why runs are not compared in the middle of the baseline's training."""
    names = [
        run.label
        for run in runs
        if baseline and levels.get(run.label) and not speedup.rates_are_constant(run, baseline)
    ]
    if baseline is None or not names:
        return []
    shares = ", ".join(f"{share:.0%}" for share in speedup.SHARES)
    return [
        f"No speed-up at {shares} of the FLOPs of {baseline.label} for {', '.join(names)}: "
        "the learning rate is not constant, so the loss in the middle of a schedule is not the "
        "loss of a run that ends there."
    ]


def _notes(runs: Sequence[Run], bases: Mapping[str, Run], baseline: Run | None) -> list[str]:
    notes = []
    for run in runs:
        if not run.rows:
            notes.append(f"{run.label} has no metrics yet.")
        elif not len(run.curve("flops", "validation_loss")[0]):
            notes.append(f"{run.label} has no validation loss yet.")
        if run.rows and not math.isfinite(run.last("loss") or 0):
            notes.append(f"{run.label} has diverged: its newest training loss is not a number.")
        if seconds_before(run, bases) is None:
            notes.append(f"The time of {run.label} excludes its base, which is not among the runs.")
        if run.state != "finished":
            notes.append(f"{run.label} is not finished ({run.state}); its figures are preliminary.")
    if baseline is None and len(runs) > 1:
        notes.append("No speed-up: the baseline is ambiguous; choose one with --baseline.")
    return notes


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Returns the comparison as plain data without NaN: `runs`, `speedup`, `notes`."""
    return {
        "runs": [_run_as_json(comparison, run) for run in comparison.runs],
        "speedup": {
            "definition": f"{speedup.DEFINITION} {speedup.FLOPS_DEFINITION}",
            "baseline": comparison.baseline.label if comparison.baseline else None,
            "levels": [
                finite(dataclasses.asdict(level))
                | {"speedup": level.speedup, "speedup_6nd": level.speedup_6nd}
                for levels in comparison.levels.values()
                for level in levels
            ],
        },
        "notes": list(comparison.notes),
    }


def _run_as_json(comparison: Comparison, run: Run) -> dict[str, Any]:
    base = comparison.bases.get(run.label)
    primary = comparison.primary(run)
    spent = goodput(run)
    losses = {source: run.last(f"{SOURCE}{source}") for source in comparison.sources()}
    return {
        "label": run.label,
        "workdir": run.workdir,
        "model": run.shape(),
        "state": run.state,
        "base": base.label if base else None,
        "ancestors": {key: run.inherited(key) for key in ("tokens", "flops", "flops_6nd")},
        **finite({key: run.last(key) for key in NEWEST}),
        "per_source": finite(losses),
        "tokens_per_second": run.tokens_per_second(),
        "goodput": spent.to_json() if spent else None,
        "hosts": [dataclasses.asdict(beat) for beat in run.hosts],
        "speedup": primary.speedup if primary else None,
    }
