"""Saves by time: a clock that all processes read alike."""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


class SaveClock:
    """Minutes since the last save.

    The processes' clocks differ, so the first one's counts for all.
    """

    def __init__(self, minutes: float, seconds: Callable[[], float] = time.monotonic) -> None:
        """Starts the clock.

        Args:
          minutes: between two saves; 0.0: no save is due by time.
          seconds: the time.
        """
        self._interval, self._seconds = 60 * minutes, seconds
        self.restart()

    def restart(self) -> None:
        """Counts from now; call it at every save."""
        self._since = self._seconds()

    def due(self) -> bool:
        """Returns whether a save is due; all processes call it equally often."""
        if not self._interval:
            return False
        late = self._seconds() - self._since >= self._interval
        if jax.process_count() > 1:
            late = bool(multihost_utils.broadcast_one_to_all(np.array(late)))
        return late
