"""What a run has left in its workdir so far: its curves, its config and whether it still goes."""

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

# A run counts as running until nothing came for this long, or for three of its longest pauses.
QUIET_SECONDS = 120.0


@dataclasses.dataclass(frozen=True)
class Run:
    """One workdir of `prts train`, as far as it has come.

    Attributes:
      label: its name in tables and pictures, unique within a report.
      workdir: directory or `gs://` URL.
      config: the resolved config as nested plain dictionaries; empty if not written yet.
      rows: its metrics, one dictionary a line, by rising step.
      state: "finished" (it left `DONE`), "running", or "stopped".
    """

    label: str
    workdir: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    state: str

    def curve(self, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns two float64 vectors: `x` and `y` of the lines that have both, finite."""
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
        """Returns what its ancestors had spent of "tokens", "flops" or "flops_6nd"; 0 for none.

        A run that starts from a checkpoint writes its first line before its first step, with its
        ancestors' sums.
        """
        if not self.rows or self.rows[0].get("stage_step") != 0:
            return 0
        return self.rows[0].get(key) or 0

    def grew(self) -> bool:
        """Returns whether growth is part of how this run came to be.

        Its config says so where it grew its model itself. A run that started from a grown
        checkpoint is known by what its ancestors had spent.
        """
        named = self.config.get("init", {}).get("grow_from")
        marked = any(row.get("growth") for row in self.rows)
        return bool(named) or marked or self.inherited("flops") > 0

    def shape(self) -> str:
        """Returns its model in the paper's way of naming, "24L2048H"; empty if not known yet."""
        model = self.config.get("model", {})
        return f"{model['layers']}L{model['embed']}H" if {"layers", "embed"} <= set(model) else ""

    def tokens_per_second(self) -> float | None:
        """Returns the mean rate of this run's own training over all devices, or None."""
        seconds, tokens = self.curve("seconds", "tokens")
        if len(seconds) < 2 or seconds[-1] <= seconds[0]:
            return None
        return float((tokens[-1] - tokens[0]) / (seconds[-1] - seconds[0]))

    def progress(self) -> float | None:
        """Returns the share of the steps it was asked for that are done, or None."""
        asked = self.config.get("train", {}).get("steps")
        done = self.last("stage_step")
        return min(1.0, done / asked) if asked and done is not None else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def split_label(argument: str) -> tuple[str, str]:
    """Splits a command line's `label=DIR`; a bare `DIR` is called by its last part.

    A directory whose own name holds "=" is taken as a directory.

    >>> split_label("grown 4x=runs/b")
    ('grown 4x', 'runs/b')
    >>> split_label("gs://bucket/runs/b/")
    ('b', 'gs://bucket/runs/b/')
    """
    label, equals, workdir = argument.partition("=")
    if equals and label and workdir and "/" not in label and not epath.Path(argument).exists():
        return label, workdir
    return PurePath(argument).name or argument, argument


def read_runs(arguments: Sequence[str], now: float | None = None) -> list[Run]:
    """Reads every run named on a command line.

    Args:
      arguments: `DIR` or `label=DIR` each.
      now: seconds since the epoch against which a run counts as running; the clock's by default.

    Raises:
      UserError: two runs of one name, or what `read_run` refuses.
    """
    named = [split_label(argument) for argument in arguments]
    labels = [label for label, _ in named]
    for label, workdir in named:
        if labels.count(label) > 1:
            raise UserError(
                f"{workdir}: another run is called {label!r} too; name them apart with label=DIR"
            )
    return [read_run(workdir, label, now) for label, workdir in named]


def read_run(workdir: str, label: str, now: float | None = None) -> Run:
    """Reads one workdir, of a run that is going, stopped or finished.

    Raises:
      UserError: the directory is missing or is no workdir, or a file in it is damaged.
    """
    root = epath.Path(workdir)
    config_path = root / "config.json"
    has_config = config_path.exists()
    files = _metrics_files(root)
    if not has_config and not files:
        what = "holds neither config.json nor metrics" if root.exists() else "no such directory"
        raise UserError(f"{workdir}: {what}; name the workdir of a `prts train`")
    rows = [row for path in files for row in _read_lines(path)]
    config = _read_config(config_path) if has_config else {}
    if (root / "DONE").exists():
        state = "finished"
    else:
        newest = max(path.stat().mtime for path in files or [config_path])
        state = _state(rows, (time.time() if now is None else now) - newest)
    return Run(label, workdir, config, rows, state)


def _metrics_files(root: epath.Path) -> list[epath.Path]:
    """Returns the file, or on object storage the segments in order."""
    single = root / "metrics.jsonl"
    if single.exists():
        return [single]
    return sorted((root / "metrics").glob("*.jsonl"))


def _read_lines(path: epath.Path) -> list[dict[str, Any]]:
    """Reads a file of JSON lines; a last line without its newline is still being written."""
    complete = path.read_text().split("\n")[:-1]
    rows = []
    for number, line in enumerate(complete, 1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise UserError(
                f"{path}: line {number} is no JSON ({error}); mend or remove it"
            ) from error
    return rows


def _read_config(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path}: is no JSON ({error}); mend or remove it") from error


def _state(rows: Sequence[Mapping[str, Any]], quiet: float) -> str:
    """Returns "running" if the silence of `quiet` seconds is not longer than is usual for it."""
    seconds = [row["seconds"] for row in rows if _is_finite(row.get("seconds"))]
    pauses = [later - earlier for earlier, later in itertools.pairwise(seconds)]
    return "running" if quiet <= max(QUIET_SECONDS, 3 * max(pauses, default=0)) else "stopped"
