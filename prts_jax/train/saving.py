"""Saves by time: a clock that all processes read alike."""

import time
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from prts_jax.config import RunConfig


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


def kept_every(config: RunConfig) -> int:
    """Returns the steps between checkpoints that are never deleted; 0: none."""
    keep = config.checkpoint
    tokens_per_step = config.data.batch * config.data.length
    return keep.keep_every_steps or -(-keep.keep_every_tokens // tokens_per_step)
