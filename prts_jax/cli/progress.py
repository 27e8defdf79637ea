"""Progress of commands that move bytes: share, rate and time left."""

import sys
import time

from prts_jax.sizes import format_bytes


class Progress:
    """Prints to standard error, about once a second."""

    def __init__(self, command: str) -> None:
        """Args: command, which each line begins with."""
        self._command = command
        self._start = self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Takes bytes done so far and in all."""
        now = time.monotonic()
        if now - self._last < 1 and done < total:
            return
        self._last = now
        rate = done / max(now - self._start, 1e-6)
        left = (total - done) / max(rate, 1.0)
        print(
            f"{self._command}: {format_bytes(done)} of {format_bytes(total)}, "
            f"{format_bytes(rate)}/s, {left:.0f} s left",
            file=sys.stderr,
            flush=True,
        )
