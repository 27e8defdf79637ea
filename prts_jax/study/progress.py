"""Progress of a study: runs done, share of the FLOPs, rate and time left."""

import contextlib
import sys
import time
from collections.abc import Callable, Sequence

from prts_jax.errors import UserError
from prts_jax.study.design import Cell, Folder, Study
from prts_jax.text_table import duration
from prts_jax.train.metrics import read_metrics

EVERY_SECONDS = 10.0
"""Pause between two updates of the line."""


class GridProgress:
    """Prints a line for each run that starts or ends, and a line of progress now and then."""

    def __init__(self, study: Study, folder: Folder, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._total = study.flops()
        self._all_runs = sum(map(study.runs, study.arms))
        self._done, self._runs, self._reused = 0.0, 0, 0.0
        self._began = self._last = time.monotonic()

    def reused(self, cell: Cell) -> None:
        """Counts a run that was finished before."""
        self._done += cell.flops()
        self._reused += cell.flops()
        self._runs += 1

    def started(self, cell: Cell) -> None:
        """Names a run that starts."""
        self._say(f"{cell.name} starts ({self._counts()})")

    def ended(self, cell: Cell, loss: float) -> None:
        """Names a run that has ended, with its validation loss."""
        self._done += cell.flops()
        self._runs += 1
        self._say(f"{cell.name} ended at a validation loss of {loss:.4f} ({self._counts()})")

    def tick(self, running: Sequence[Cell]) -> None:
        """Prints the progress of the whole grid, at most every `EVERY_SECONDS`."""
        now = time.monotonic()
        if now - self._last < EVERY_SECONDS:
            return
        self._last = now
        done = self._done + sum(self._part(cell) * cell.flops() for cell in running)
        rate = (done - self._reused) / (now - self._began)
        left = f"{duration((self._total - done) / rate)} left" if rate > 0 else "starting"
        line = f"{self._counts()}, {done / self._total:.1%} of the FLOPs, {rate:.2e} FLOP/s, {left}"
        print(line, file=sys.stderr, flush=True)

    def _counts(self) -> str:
        return f"{self._runs} of {self._all_runs} runs done"

    def _part(self, cell: Cell) -> float:
        """Returns the share of a running cell that is done."""
        with contextlib.suppress(UserError, OSError):
            lines = read_metrics(str(self._folder.run(cell)))
            if lines:
                last, first = lines[-1]["flops"], lines[0]["flops"]
                start = first if lines[0].get("stage_step") == 0 else 0
                return min(1.0, float(last - start) / cell.flops())
        return 0.0
