"""A training run as read from its workdir: curves, config and state."""

import dataclasses
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from etils import epath

from prts_jax.errors import UserError
from prts_jax.paths import as_path, is_remote
from prts_jax.train.metrics import read_metrics

QUIET_SECONDS = 300.0
"""A run counts as stopped after this long without output (it may be compiling), or after three of
its usual pauses, whichever is longer."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir of `prts train`, finished or not.

    Attributes:
      label: its name in tables and figures, unique within a report.
      workdir: directory or `gs://` URL.
      config: the resolved config as nested plain dictionaries; empty if not written yet.
      rows: its metrics, one dictionary per line, by rising step; two of one step where a stage ends
        and the next begins.
      state: "finished" (it left `DONE`), "running", or "stopped".
    """

    label: str
    workdir: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    state: str

    def curve(self, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns `x` and `y`, float64 vectors, of the lines in which both are finite."""
        points = [
            (row[x], row[y])
            for row in self.rows
            if _is_finite(row.get(x)) and _is_finite(row.get(y))
        ]
        pairs = np.asarray(points, np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def last(self, key: str) -> float | None:
        """Returns the newest value under `key` (it may be NaN), or None if no line has one."""
        return next((row[key] for row in reversed(self.rows) if row.get(key) is not None), None)

    def inherited(self, key: str) -> float:
        """Returns the ancestors' total of "tokens", "flops" or "flops_6nd"; 0 without ancestors.

        A run that starts from a checkpoint writes a line with these totals before its first step.
        """
        if not self.rows or self.rows[0].get("stage_step") != 0:
            return 0
        return self.rows[0].get(key) or 0

    def grew(self) -> bool:
        """Returns whether this run grew, by the first line of a stage or, before it, the config."""
        return any(row.get("growth") for row in self.rows) or bool(
            self.config.get("init", {}).get("grow_from")
        )

    def growths_on_the_way(self) -> list[Mapping[str, Any]]:
        """Returns the rows at which a stage of this run grew from its previous stage."""
        return [row for row in self.rows if row.get("growth") and row.get("previous_stage")]

    def shape(self) -> str:
        """Returns the model's shape in the paper's notation, "24L2048H"; "" if not known yet."""
        return shape_name(self.config.get("model", {}))

    def tokens_per_second(self) -> float | None:
        """Returns the mean rate of this run over all devices, ancestors excluded, or None."""
        seconds, tokens = self.curve("seconds", "tokens")
        if len(seconds) < 2 or seconds[-1] <= seconds[0]:
            return None
        return float((tokens[-1] - tokens[0]) / (seconds[-1] - seconds[0]))

    def progress(self) -> float | None:
        """Returns the share of the configured steps that are done, or None if unknown."""
        total = self.config.get("train", {}).get("steps")
        done = self.last("stage_step")
        stages = self.config.get("growth", {}).get("stages")
        if stages and done is not None:
            total = sum(stage["steps"] for stage in stages)
            done += sum(stage["steps"] for stage in stages[: int(self.last("stage") or 0)])
        return min(1.0, done / total) if total and done is not None else None


def shape_name(model: Mapping[str, Any]) -> str:
    """Returns a model's shape in the paper's notation, "24L2048H"; "" without its sizes."""
    return f"{model['layers']}L{model['embed']}H" if {"layers", "embed"} <= set(model) else ""


def _with_ends_of_stages(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Restores the last line of each stage, kept in the next stage's first one."""
    return [line for row in rows for line in (row.get("previous_stage"), row) if line is not None]


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def split_label(argument: str) -> tuple[str, str]:
    """Splits `label=DIR`; the label of a bare `DIR` is its last part.

    An existing directory with "=" in its name is taken as a directory.

    >>> split_label("grown 4x=runs/b")
    ('grown 4x', 'runs/b')
    >>> split_label("gs://bucket/runs/b/")
    ('b', 'gs://bucket/runs/b/')
    """
    label, equals, workdir = argument.partition("=")
    if equals and label and workdir and "/" not in label and not as_path(argument).exists():
        return label, workdir
    return PurePath(argument).name or argument, argument


def read_runs(arguments: Sequence[str], now: float | None = None) -> list[Run]:
    """Reads the runs of a command line.

    Args:
      arguments: `DIR` or `label=DIR` each.
      now: seconds since the epoch, to decide whether a run is running; None for the clock.

    Raises:
      UserError: two runs of one label, or see `read_run`.
    """
    named = [split_label(argument) for argument in arguments]
    labels = [label for label, _ in named]
    for label, workdir in named:
        if labels.count(label) > 1:
            raise UserError(
                f"{workdir}: another run has the label {label!r}, too; give one with label=DIR"
            )
    return [read_run(workdir, label, now) for label, workdir in named]


def read_run(workdir: str, label: str, now: float | None = None) -> Run:
    """Reads one workdir of a running, stopped or finished run.

    Raises:
      UserError: the directory is missing or no workdir, or a file in it is damaged.
    """
    root = as_path(workdir)
    config_path = root / "config.json"
    files = [path for path in (config_path, *_metrics_files(root)) if path.exists()]
    if not files:
        what = "holds neither config.json nor metrics" if root.exists() else "no such directory"
        raise UserError(f"{workdir}: {what}; name the workdir of a `prts train`")
    rows = _with_ends_of_stages(read_metrics(workdir))
    config = _read_config(config_path) if config_path in files else {}
    if (root / "DONE").exists():
        state = "finished"
    else:
        newest = max(path.stat().mtime for path in files)
        quiet = (time.time() if now is None else now) - newest
        usual = _usual_pause(rows, config, is_remote(workdir))
        state = "running" if quiet <= max(QUIET_SECONDS, 3 * usual) else "stopped"
    return Run(label, workdir, config, rows, state)


def _metrics_files(root: epath.Path) -> list[epath.Path]:
    segments = root / "metrics"
    return [root / "metrics.jsonl", *(segments.iterdir() if segments.exists() else [])]


def _read_config(path: epath.Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); fix or remove it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix or remove it") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: is no JSON object; fix or remove it")
    return config


def _usual_pause(
    rows: Sequence[Mapping[str, Any]], config: Mapping[str, Any], remote: bool
) -> float:
    """Returns the longest seconds between two lines; on object storage, between checkpoints."""
    timed = [(row["step"], row["seconds"]) for row in rows if _is_finite(row.get("seconds"))]
    if remote:
        every = config.get("checkpoint", {}).get("every_steps")
        if not every or len(timed) < 2 or timed[-1][0] <= timed[0][0]:
            return math.inf
        return every * (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
    return max((b - a for (_, a), (_, b) in itertools.pairwise(timed)), default=0.0)
