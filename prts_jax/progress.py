"""Progress of work on bytes: lines with counts, rates and the time left."""

import contextlib
import sys
import time
from collections.abc import Callable
from datetime import timedelta

from prts_jax.errors import one_line
from prts_jax.text_table import format_bytes

REPORT_SECONDS = 10.0
"""Seconds between two lines."""


def report_to_stderr(line: str) -> None:
    """Prints a line to standard error; a closed pipe does not end the work."""
    with contextlib.suppress(BrokenPipeError):
        print(one_line(line), file=sys.stderr, flush=True)


class Progress:
    """Reports a line at the first call, at the last, and every `REPORT_SECONDS` between them."""

    def __init__(self, title: str, report: Callable[[str], None] = report_to_stderr) -> None:
        """Starts the clock; each line begins with the title."""
        self._title, self._report = title, report
        self._start, self._last = time.monotonic(), float("-inf")

    def __call__(self, done: int, total: int, *counts: str) -> None:
        """Reports a line on bytes if one is due, with other counts such as "file 3/7"."""
        now = time.monotonic()
        if done < total and now - self._last < REPORT_SECONDS:
            return
        self._last = now
        rate = self.rate(done)
        left = timedelta(seconds=round((total - done) / max(rate, 1.0)))
        parts = (
            *counts,
            f"{format_bytes(done)} of {format_bytes(total)}",
            f"{format_bytes(rate)}/s",
            f"{left} left",
        )
        self._report(f"{self._title}: {', '.join(parts)}")

    def rate(self, count: int) -> float:
        """Returns a count per second since the start."""
        return count / max(time.monotonic() - self._start, 1e-9)
