"""A training run as read from its workdir: curves, config and state."""

import contextlib
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeVar

import numpy as np
from etils import epath

from prts_jax.errors import UserError, escaped, first_line, one_line
from prts_jax.heartbeats import FOLDER, Beat, parse
from prts_jax.paths import as_path, is_remote
from prts_jax.train.metrics import read_metrics

QUIET_SECONDS = 300.0
"""A run counts as stopped after this long without output (it may be compiling), or after three of
its usual pauses, whichever is longer."""

LARGEST = 10**300
"""Whole numbers in metrics are smaller, so that they are float64 numbers too."""

Kind = TypeVar("Kind")


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
      hosts: the last heartbeat of each host; empty if an older version trained it.
    """

    label: str
    workdir: str
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    state: str
    hosts: Sequence[Beat] = ()

    def curve(self, x: str, y: str) -> tuple[np.ndarray, np.ndarray]:
        """Returns `x` and `y`, float64 vectors, of the lines in which both are finite."""
        points = [
            (row[x], row[y]) for row in self.rows if is_finite(row.get(x)) and is_finite(row.get(y))
        ]
        pairs = np.asarray(points, np.float64).reshape(-1, 2)
        return pairs[:, 0], pairs[:, 1]

    def last(self, key: str) -> float | None:
        """Returns the newest number under `key` (it may be NaN), or None if no line has one."""
        return next((row[key] for row in reversed(self.rows) if _is_number(row.get(key))), None)

    def inherited(self, key: str) -> float:
        """Returns the ancestors' total of "tokens", "flops" or "flops_6nd"; 0 without ancestors.

        A run that starts from a checkpoint writes a line with these totals before its first step.
        """
        if not self.rows or not (self.rows[0].get("stage_step") == 0 or self.branched()):
            return 0
        value: Any = self.rows[0].get(key)
        return value if is_finite(value) else 0

    def branched(self) -> bool:
        """Returns whether this run is a branch: it took a trunk's whole state and decays."""
        return bool(self.rows and self.rows[0].get("branch"))

    def grew(self) -> bool:
        """Returns whether this run grew, by the first line of a stage or, before it, the config."""
        return any(row.get("growth") for row in self.rows) or bool(
            self.setting("init", "grow_from", str)
        )

    def setting(self, section: str, key: str, kind: type[Kind]) -> Kind | None:
        """Returns a value of the config; None if it is missing or of another type."""
        values = self.config.get(section)
        value = values.get(key) if isinstance(values, Mapping) else None
        return value if isinstance(value, kind) else None

    def growths_on_the_way(self) -> list[Mapping[str, Any]]:
        """Returns the rows at which a stage of this run grew from its previous stage."""
        return [row for row in self.rows if row.get("growth") and row.get("previous_stage")]

    def gaps(self) -> list[tuple[float, float]]:
        """Returns the last step before and the first step after each gap of the metrics.

        `prts_jax.train.metrics` marks the line after lost or damaged ones with `gap_after`.
        """
        return [
            (row["gap_after"], row["step"]) for row in self.rows if is_finite(row.get("gap_after"))
        ]

    def shape(self) -> str:
        """Returns the model's shape in the paper's notation, "24L2048H"; "" if not known yet."""
        return shape_name(self.config.get("model"))

    def tokens_per_second(self) -> float | None:
        """Returns the mean rate of this run over all devices, ancestors excluded, or None."""
        seconds, tokens = self.curve("seconds", "tokens")
        if len(seconds) < 2 or seconds[-1] <= seconds[0]:
            return None
        return float((tokens[-1] - tokens[0]) / (seconds[-1] - seconds[0]))

    def progress(self) -> float | None:
        """Returns the share of the configured steps that are done, or None if unknown."""
        total, done = self.setting("train", "steps", int), self.last("stage_step")
        stages = self.setting("growth", "stages", list)
        if done is None or not math.isfinite(done):
            return None
        if stages:
            values = [s.get("steps") if isinstance(s, Mapping) else None for s in stages]
            steps = [count for count in values if isinstance(count, int)]
            stage = self.last("stage") or 0
            if len(steps) < len(stages) or not math.isfinite(stage):
                return None
            total, done = sum(steps), done + sum(steps[: int(stage)])
        return min(1.0, done / total) if total and total > 0 else None


def shape_name(model: Any) -> str:
    """Returns a model's shape in the paper's notation, "24L2048H"; "" without its sizes."""
    sizes = [model.get(key) if isinstance(model, Mapping) else None for key in ("layers", "embed")]
    return "{}L{}H".format(*sizes) if all(isinstance(size, int) for size in sizes) else ""


def _lines(rows: Sequence[Mapping[str, Any]], workdir: str) -> list[Mapping[str, Any]]:
    """Returns the lines of metrics, each stage's last one restored from the next stage's first.

    Names are escaped, and values of another type than their key's are left out.
    """
    lines: list[Mapping[str, Any]] = []
    for row in rows:
        for line in (row.get("previous_stage"), row):
            if isinstance(line, Mapping):
                lines.append({escaped(key): v for key, v in line.items() if _fits(key, v)})
    for line in lines:
        if not is_finite(line.get("step")):
            raise UserError(f"{workdir}: metrics hold a line without a step; remove it")
    return lines


def _fits(key: str, value: Any) -> bool:
    kind = Mapping if key in ("growth", "branch", "previous_stage") else int | float | str | None
    return isinstance(value, kind) and (not isinstance(value, int) or abs(value) < LARGEST)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Returns whether a value of a line is a finite number."""
    return _is_number(value) and math.isfinite(value)


def split_label(argument: str) -> tuple[str, str]:
    """Splits `label=DIR`; the label of a bare `DIR` is its last part.

    An existing directory with "=" in its name is taken as a directory. Unprintable characters of
    the label are escaped, since tables, figures and pages show it.

    >>> split_label("grown 4x=runs/b")
    ('grown 4x', 'runs/b')
    >>> split_label("gs://bucket/runs/b/")
    ('b', 'gs://bucket/runs/b/')
    """
    label, equals, workdir = argument.partition("=")
    labelled = equals and label and workdir and "/" not in label
    if labelled and ("://" in workdir or not as_path(argument).exists()):
        return one_line(label), workdir
    return one_line(PurePath(_seeds(argument)[0]).name or argument), argument


def read_seeds(arguments: Sequence[str], now: float | None = None) -> list[list[Run]]:
    """Reads the runs of a command line: `DIR`, `label=DIR`, or `label=DIR,DIR,…` for several seeds.

    Returns a list of runs for each seed; a run of one seed is in all of them. `now`, in seconds
    since the epoch, decides whether a run is running.

    Raises:
      UserError: two runs of one label or workdir, different numbers of seeds, or see `read_run`.
    """
    named = [split_label(argument) for argument in arguments]
    labels = [label for label, _ in named]
    for label, workdir in named:
        if labels.count(label) > 1:
            raise UserError(
                f"{workdir}: another run has the label {label!r}, too; give one with label=DIR"
            )
    seeds = [_seeds(workdir) for _, workdir in named]
    count = max(map(len, seeds))
    for label, workdirs in zip(labels, seeds, strict=True):
        if len(workdirs) not in (1, count):
            raise UserError(
                f"{label}: has {len(workdirs)} seeds and another run {count}; give as many, or one"
            )
        for workdir in workdirs:
            if workdirs.count(workdir) > 1:
                raise UserError(f"{workdir}: is named twice for {label}; name each seed once")
    read = [
        [read_run(workdir, label, now) for workdir in workdirs]
        for label, workdirs in zip(labels, seeds, strict=True)
    ]
    return [[runs[seed % len(runs)] for runs in read] for seed in range(count)]


def _seeds(workdir: str) -> list[str]:
    """Splits "DIR,DIR"; an existing directory with a comma in its name is one."""
    if "," not in workdir or ("://" not in workdir and as_path(workdir).exists()):
        return [workdir]
    return [part for part in workdir.split(",") if part] or [workdir]


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
    try:
        rows = _lines(read_metrics(workdir), workdir)
    except RecursionError as error:
        raise UserError(f"{workdir}: metrics hold a damaged line (too deep); remove it") from error
    config = _read_config(config_path) if config_path in files else {}
    if (root / "DONE").exists():
        state = "finished"
    else:
        newest = max(path.stat().mtime for path in files)
        quiet = (time.time() if now is None else now) - newest
        usual = _usual_pause(Run(label, workdir, config, rows, ""), is_remote(workdir))
        state = "running" if quiet <= max(QUIET_SECONDS, 3 * usual) else "stopped"
    return Run(label, workdir, config, rows, state, _hosts(root))


def _hosts(root: epath.Path) -> list[Beat]:
    """Returns the heartbeats of a run; one that is being replaced, or damaged, is left out."""
    folder = root / FOLDER
    texts = []
    for path in folder.iterdir() if folder.is_dir() else []:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            texts.append(path.read_text())
    return parse("\n".join(texts))


def _metrics_files(root: epath.Path) -> list[epath.Path]:
    segments = root / "metrics"
    return [root / "metrics.jsonl", *(segments.iterdir() if segments.is_dir() else [])]


def _read_config(path: epath.Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is no JSON ({first_line(error)}); fix or remove it") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); fix or remove it") from error
    if not isinstance(config, dict):
        raise UserError(f"{path}: is no JSON object; fix or remove it")
    return config


def _usual_pause(run: Run, remote: bool) -> float:
    """Returns the longest seconds between two lines; on object storage, between checkpoints."""
    timed = [(row["step"], row["seconds"]) for row in run.rows if is_finite(row.get("seconds"))]
    if remote:
        every = run.setting("checkpoint", "every_steps", int)
        if not every or len(timed) < 2 or timed[-1][0] <= timed[0][0]:
            return math.inf
        return every * (timed[-1][1] - timed[0][1]) / (timed[-1][0] - timed[0][0])
    return max((b - a for (_, a), (_, b) in itertools.pairwise(timed)), default=0.0)
