"""Several runs side by side: everything that the table, the pictures and the page are made from."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prts_jax.report import ancestry, speedup
from prts_jax.report.runs import Run
from prts_jax.tree import flatten

SOURCE = "validation_loss/"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs and how they relate.

    Attributes:
      runs: in the order they were given.
      bases: by label, the run among `runs` that this one started from.
      baseline: the run that the others are measured against, if one is clear.
      levels: by label, the run against the baseline at several losses, the primary one first.
      notes: what a reader should know, a sentence each.
    """

    runs: Sequence[Run]
    bases: Mapping[str, Run]
    baseline: Run | None
    levels: Mapping[str, Sequence[speedup.Level]]
    notes: Sequence[str]

    def primary(self, run: Run) -> speedup.Level | None:
        """Returns the comparison at the baseline's lowest loss, or None where there is none."""
        levels = self.levels.get(run.label)
        return levels[0] if levels else None

    def sources(self) -> list[str]:
        """Returns the names of the validation sets that any run was evaluated on, sorted."""
        keys = {key for run in self.runs for row in run.rows for key in row}
        return sorted(key.removeprefix(SOURCE) for key in keys if key.startswith(SOURCE))

    def config_differences(self) -> dict[str, list[Any]]:
        """Returns, by dotted key, the values of the runs, for keys on which they differ.

        A run that has not written its config yet, or lacks the key, has None there.
        """
        flat = [
            {path.replace("/", "."): value for path, value in flatten(run.config).items()}
            for run in self.runs
        ]
        keys = sorted(set().union(*flat))
        values = {key: [config.get(key) for config in flat] for key in keys}
        return {key: row for key, row in values.items() if any(v != row[0] for v in row)}


def compare(runs: Sequence[Run], baseline: str | None = None) -> Comparison:
    """Relates runs to each other.

    Args:
      runs: one or more.
      baseline: label of the run to measure against; found by `ancestry.find_baseline` if None.

    Raises:
      UserError: no run is called `baseline`.
    """
    bases = ancestry.find_bases(runs)
    chosen = ancestry.find_baseline(runs, bases, baseline)
    levels = {}
    if chosen is not None:
        are_bases = {base.label for base in bases.values()}
        for run in runs:
            if run is not chosen and run.label not in are_bases:
                levels[run.label] = speedup.compare(run, chosen)
    return Comparison(runs, bases, chosen, levels, _notes(runs, bases, chosen))


def _notes(runs: Sequence[Run], bases: Mapping[str, Run], baseline: Run | None) -> list[str]:
    notes = []
    for run in runs:
        if not run.rows:
            notes.append(f"{run.label} has no metrics yet.")
        elif not len(run.curve("flops", "validation_loss")[0]):
            notes.append(f"{run.label} has no validation loss yet.")
        if run.rows and not math.isfinite(run.last("loss") or 0):
            notes.append(f"{run.label} has diverged: its newest training loss is not a number.")
        if ancestry.seconds_before(run, bases) is None:
            notes.append(
                f"The time of {run.label} leaves out what its base took: the base is not among "
                "the runs."
            )
        if run.state != "finished":
            notes.append(f"{run.label} has not finished ({run.state}); its figures are as of now.")
    if baseline is None and len(runs) > 1:
        notes.append("No speed-up: no run is clearly the baseline; name it by --baseline.")
    return notes


def as_json(comparison: Comparison) -> dict[str, Any]:
    """Returns the comparison as plain data: `runs`, `speedup`, `notes`. No NaN is in it."""
    return {
        "runs": [_run_as_json(comparison, run) for run in comparison.runs],
        "speedup": {
            "definition": f"{speedup.DEFINITION} {speedup.FLOPS_DEFINITION}",
            "baseline": comparison.baseline.label if comparison.baseline else None,
            "levels": [
                _finite(dataclasses.asdict(level))
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
    newest = {
        key: run.last(key)
        for key in (
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
    }
    return {
        "label": run.label,
        "workdir": run.workdir,
        "model": run.shape(),
        "state": run.state,
        "base": base.label if base else None,
        "ancestors": {key: run.inherited(key) for key in ("tokens", "flops", "flops_6nd")},
        **_finite(newest),
        "per_source": _finite(
            {source: run.last(f"{SOURCE}{source}") for source in comparison.sources()}
        ),
        "tokens_per_second": run.tokens_per_second(),
        "speedup": primary.speedup if primary else None,
    }


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what a diverged run left becomes null."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in values.items()
    }
