"""Metrics of a run: metrics.jsonl (segments on gs://), their copies and the terminal line."""

import contextlib
import json
import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prts_jax.errors import (
    FULL,
    START_AGAIN,
    LostLockError,
    StorageError,
    UserError,
    storage_errors,
)
from prts_jax.launch.accelerators import PEAK_FLOPS_PER_DEVICE
from prts_jax.paths import append_whole, as_path, exists, is_remote, write_atomically
from prts_jax.train.event_file import summary_writer
from prts_jax.train.weights_and_biases import WandbRun

Line = dict[str, Any]

OUTSIDE_STEPS = ("starting", "compiling", "evaluation", "saving")
"""Work of a run besides its training steps; lines have `<work>_seconds`, summed over resumes."""


def peak_flops(device_kind: str) -> float | None:
    """Returns the dense bf16 peak of a device in FLOP/s; None if unknown, then there is no MFU.

    MFU is training FLOPs (`prts_jax.model.counts`) per second, divided by the sum of these peaks.
    """
    matches = [kind for kind in PEAK_FLOPS_PER_DEVICE if device_kind.startswith(kind)]
    return PEAK_FLOPS_PER_DEVICE[max(matches, key=len)] if matches else None


def read_metrics(workdir: str) -> list[Line]:
    """Returns the metrics lines of a run in order of steps.

    An incomplete last line, which is still being written, is omitted.

    Args:
      workdir: directory with `metrics.jsonl`, or on gs:// with segments in `metrics/`.

    Raises:
      UserError: a line is not valid metrics, or a file cannot be read.
    """
    lines, damaged = _read_lines(workdir)
    if damaged:
        raise UserError(f"{as_path(workdir)}: metrics hold a damaged line ({damaged}); remove it")
    return lines


def _read_lines(workdir: str) -> tuple[list[Line], str]:
    """Returns the intact lines in order of steps, and what is wrong with the first damaged one.

    The line after a damaged one gets the key `gap_after`, the last step before the damage.

    Raises:
      UserError, StorageError: a file cannot be read.
    """
    root = as_path(workdir)
    with storage_errors(f"{root}: metrics cannot be read"):
        paths = _segments(workdir) if is_remote(workdir) else [root / "metrics.jsonl"]
        contents = [path.read_bytes() for path in paths if exists(path)]
    # Segments repeat lines if a process died after merging them, before deleting the old ones.
    by_step: dict[int, Line] = {}
    damage, gap, last = "", False, -1
    for text in (text for content in contents for text in content.split(b"\n")[:-1]):
        try:
            line = json.loads(text)
            step = operator.index(line["step"])
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            damage, gap = damage or repr(error), True
            continue
        by_step[step] = line | ({"gap_after": last} if gap else {})
        gap, last = False, step
    return list(by_step.values()), damage


class MetricsLog:
    """Writes the metrics of a run, one JSON object per line and one line per step.

    The first line of a stage has the same step as the last line of the stage before. It replaces
    that line and holds it as `previous_stage`.

    On local disk each line is appended at once. On gs://, which cannot append, lines are
    collected in a segment that `flush` writes. Lines that cannot be written, because the storage is
    full or away, are kept and written in order before later ones.
    """

    def __init__(
        self,
        workdir: str,
        after_step: int | None,
        tensorboard: bool,
        check_lock: Callable[[], None] = lambda: None,
        mirror: WandbRun | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Opens the log and drops lines after the restored step.

        Args:
          workdir: directory of the run.
          after_step: the restored step; lines of later steps are dropped. None drops all lines.
          tensorboard: whether to write `workdir/tensorboard` too.
          check_lock: raises an error if another process has taken over the workdir's lock; called
            before a file is replaced or a segment is stored.
          mirror: receives the lines too.
          say: tells the user that lines cannot be written.
        """
        self._check_lock, self._mirror, self._say = check_lock, mirror, say
        self._workdir = workdir
        self._whole: list[Line] | None = None  # replaces all lines that are stored
        self._unwritten: list[str] = []  # after those
        self._segment_step = 0
        self._failed = False
        self._gap: Line = {}
        self.lost = ""
        self.kept = self._drop_after(-1 if after_step is None else after_step)
        self._writer = self._tensorboard(after_step) if tensorboard else None

    def _drop_after(self, step: int) -> list[Line]:
        lines, damage = _read_lines(self._workdir)
        kept = [line for line in lines if line["step"] <= step]
        last = kept[-1]["step"] if kept else -1
        self._gap = {"gap_after": last} if last < step else {}
        if damage and step >= 0:
            self.lost = f"metrics: damaged lines are left out ({damage})"
        elif self._gap:
            self.lost = f"metrics: the lines after step {last} up to step {step} are missing"
        self._whole = kept
        self._try_to_store()
        return kept

    def _rewrite(self, kept: list[Line]) -> None:
        """Replaces all lines by `kept`, unless another process has taken over the workdir."""
        self._check_lock()
        text = "".join(json.dumps(line) + "\n" for line in kept)
        root = as_path(self._workdir)
        if not is_remote(self._workdir):
            write_atomically(root / "metrics.jsonl", text)
            return
        merged = _segment_name(kept[0]["step"]) if kept else ""
        with storage_errors(f"{root / 'metrics'}: cannot be written"):
            (root / "metrics").mkdir(parents=True, exist_ok=True)
            if kept:
                write_atomically(root / "metrics" / merged, text)
            for segment in _segments(self._workdir):
                if segment.name != merged:
                    segment.unlink()

    def _tensorboard(self, after_step: int | None) -> Any:
        # It imports whatever of these is installed: torch alone takes seconds, for no scalar.
        with _absent("torch", "google.cloud.storage"):
            purge = None if after_step is None else after_step + 1
            return summary_writer(str(as_path(self._workdir) / "tensorboard"), purge)

    def write(self, line: Line) -> None:
        """Writes a line; its keys include "step". The first after lost lines has `gap_after`."""
        line, self._gap = {**line, **self._gap}, {}
        text = json.dumps(line, allow_nan=False)
        if self.kept and self.kept[-1]["step"] == line["step"]:
            last = self.kept.pop()
            line = {**line, "previous_stage": last.get("previous_stage", last)}
            self._whole = [*self.kept, line]
        else:
            self._segment_step = self._segment_step if self._unwritten else line["step"]
            self._unwritten.append(text + "\n")
        if self._whole is not None or not is_remote(self._workdir):
            self._try_to_store()
        if self._mirror is not None:
            self._mirror.write(line)
        if self._writer is not None:
            for name, value in line.items():
                if isinstance(value, float) and math.isfinite(value):
                    self._writer.add_scalar(name, value, line["step"])

    def amend(self, step: int, values: Line) -> None:
        """Adds keys to the line of the restored step, if it exists."""
        if values and self.kept and self.kept[-1]["step"] == step:
            self.kept[-1] |= values
            self._whole = self.kept
            self._try_to_store()

    def _try_to_store(self) -> None:
        """Stores all lines if that is possible; says so when it becomes impossible."""
        try:
            self._store()
        except LostLockError:
            raise
        except StorageError as error:
            if not self._failed:
                why = str(error).removesuffix(START_AGAIN)
                self._say(f"{why}; lines of metrics are kept in memory until they can be written")
            self._failed = True

    def _store(self) -> None:
        if self._whole is not None:
            self._rewrite(self._whole)
            self._whole = None
        if self._unwritten:
            text, root = "".join(self._unwritten), as_path(self._workdir)
            if is_remote(self._workdir):
                self._check_lock()
                write_atomically(root / "metrics" / _segment_name(self._segment_step), text)
            else:
                with storage_errors(f"{root / 'metrics.jsonl'}: cannot be written"):
                    append_whole(root / "metrics.jsonl", text.encode())
            self._unwritten = []
        self._failed = False

    def flush(self) -> None:
        """Stores every line written so far; call it before a checkpoint is saved.

        Raises:
          StorageError: they cannot be written; they are kept.
        """
        self._store()
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        """Flushes and closes."""
        self.flush()
        if self._writer is not None:
            self._writer.close()
        if self._mirror is not None:
            self._mirror.close()


@contextlib.contextmanager
def _absent(*modules: str) -> Iterator[None]:
    """Makes imports of these modules fail within the context, unless they are loaded."""
    hidden: dict[str, Any] = {name: None for name in modules if name not in sys.modules}
    sys.modules.update(hidden)
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


def _segments(workdir: str) -> list[Any]:
    """Returns the paths of a remote run's segments in order; empty if there are none."""
    folder = as_path(workdir) / "metrics"
    paths = folder.iterdir() if folder.exists() else []
    return sorted(path for path in paths if path.name.endswith(".jsonl"))


def _segment_name(step: int) -> str:
    return f"{step:012d}.jsonl"


class TerminalLine:
    """Progress on standard error: one line, redrawn in a terminal, otherwise printed each time."""

    def __init__(self, total_steps: int, quiet: bool, stage: str = "") -> None:
        """Makes a progress line.

        Args:
          total_steps: steps of this stage.
          quiet: prints nothing; for all processes but the first.
          stage: name of the stage; empty in a run of one stage.
        """
        self._total = total_steps
        self._stage = [stage] if stage else []
        self._quiet = quiet
        self._redraw = sys.stderr.isatty()

    def show(self, run_step: int, line: Mapping[str, Any], seconds_per_step: float) -> None:
        """Shows a line of metrics with the time left.

        Args:
          run_step: completed steps of `total_steps`.
          line: line as written to metrics.jsonl.
          seconds_per_step: recent wall time per step.
        """
        if self._quiet:
            return
        parts = [*self._stage, f"step {run_step}/{self._total}"]
        if "loss" in line:
            parts.append(f"loss {line['loss']:.4f}")
        if "validation_loss" in line:
            parts.append(f"validation {line['validation_loss']:.4f}")
        if "tokens_per_second_per_device" in line:
            parts.append(f"{line['tokens_per_second_per_device']:,.0f} tokens/s/device")
        if line.get("mfu") is not None:
            parts.append(f"MFU {line['mfu']:.1%}")
        if seconds_per_step > 0:
            minutes, seconds = divmod(round((self._total - run_step) * seconds_per_step), 60)
            parts.append(f"{minutes // 60:02}:{minutes % 60:02}:{seconds:02} left")
        text = "  ".join(parts)
        self._print(text, "\n" if not self._redraw or "validation_loss" in line else "")

    def say(self, text: str) -> None:
        """Prints a text on a separate line."""
        if not self._quiet:
            self._print(text, "\n")

    def _print(self, text: str, end: str) -> None:
        try:
            print(f"\r\x1b[K{text}" if self._redraw else text, end=end, file=sys.stderr, flush=True)
        except OSError as error:
            if error.errno not in FULL:  # a log on the full disk
                raise
