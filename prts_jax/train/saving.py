"""When a run saves: by steps, by time, and again after a save that has failed."""

import contextlib
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import jax
import numpy as np
from jax.experimental import multihost_utils

from prts_jax.checkpoint.store import Checkpoints
from prts_jax.config import CheckpointConfig, RunConfig
from prts_jax.errors import START_AGAIN, LostLockError, StorageError
from prts_jax.text_table import duration

FIRST_RETRY_SECONDS = 10.0
"""Seconds from a failed save to the next one; each further failure doubles them."""

LONGEST_RETRY_SECONDS = 300.0


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
        return _of_first_process(self._seconds() - self._since >= self._interval)


class Saves:
    """The saves of a stage; training goes on after one that fails, for a limited time.

    The failure is named at the next step, by several processes once they agree on it at the next
    line of metrics. A later state is then saved with a line of metrics, after a pause that grows
    with each failure. Every process calls the same methods after the same steps.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        config: CheckpointConfig,
        say: Callable[[str], None],
        count: Callable[[], None],
        paused: Callable[[str], AbstractContextManager[None]],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        """Makes the saves of a stage.

        Args:
          checkpoints: of the run.
          config: the intervals and the limit.
          say: tells the user.
          count: counts a failed save.
          paused: excludes the time of its context from the rates, see `Recorder`.
          seconds: the time; the first process's counts for all.
        """
        self._checkpoints, self._say, self._count, self._paused = checkpoints, say, count, paused
        self._clock, self._seconds = SaveClock(config.every_minutes, seconds), seconds
        self._limit = 60 * config.retry_minutes
        self._running = False  # a save that has begun and of whose end nothing is known
        self._named: Exception | None = None
        self._error: StorageError | None = None  # of the newest save
        self._failures, self._since, self._again = 0, 0.0, 0.0  # in a row; first; next try

    def after_step(self, with_line: bool) -> None:
        """Names a failure of the background save.

        Args:
          with_line: whether a line of metrics is due, so that processes may wait for one another.

        Raises:
          StorageError: saves have failed for too long.
        """
        if not with_line and jax.process_count() > 1:
            error = self._checkpoints.failure()
            if error is not None and error is not self._named:
                self._say(_without_advice(error))
            self._named = error
            return
        removing = self._paused("saving") if self._checkpoints.has_ended() else nullcontext()
        try:
            with removing:
                ended = self._checkpoints.check()
        except StorageError as error:
            self.failed(error)
        else:
            if ended and self._running:
                self.succeeded()

    def due(self, scheduled: bool, logging: bool, must: bool) -> bool:
        """Returns whether to save now, with a line of metrics.

        Args:
          scheduled: whether the steps say so.
          logging: whether the minutes may say so.
          must: whether there is no later step.
        """
        if self._error is not None and not must:
            return self._is_time()
        return scheduled or must or (logging and self._clock.due())

    def started(self) -> None:
        """Takes note of a save that has begun."""
        self._running = True
        self._clock.restart()

    def succeeded(self) -> None:
        """Takes note of a checkpoint that is complete; after a failure it says so."""
        if self._error is not None:
            self._say(f"saved again, after {_times(self._failures)}")
        self._error, self._failures, self._running = None, 0, False

    def failed(self, error: StorageError) -> None:
        """Takes note of a save that has failed on all processes, and says when the next one is.

        Raises:
          StorageError: the last save that may fail in a row.
          LostLockError: another process writes there.
        """
        if isinstance(error, LostLockError):
            raise error
        now, self._running = self._seconds(), False
        if not self._failures:
            self._since = now
        self._count()
        self._failures, self._error = self._failures + 1, error
        left = self._since + self._limit - now
        if not _of_first_process(left > 0):
            self.give_up(f"{_times(self._failures)} in {duration(now - self._since)}")
        pause = min(FIRST_RETRY_SECONDS * 2 ** (self._failures - 1), LONGEST_RETRY_SECONDS, left)
        self._again = now + pause
        self._say(
            f"{_without_advice(error)}: {_times(self._failures)}; the run goes on and saves again "
            f"in {duration(pause)}"
        )

    def give_up(self, why: str) -> None:
        """Ends the run if its newest state is not saved.

        Raises:
          StorageError: the last save failed.
        """
        if self._error is not None:
            with contextlib.suppress(StorageError):
                self._checkpoints.wait()  # for a save whose failure is known to nobody
            raise StorageError(
                f"{_without_advice(self._error)}{START_AGAIN} ({why})"
            ) from self._error

    def settle(self) -> bool:
        """Waits for the background save; returns whether the newest one is complete.

        Raises:
          StorageError: saves have failed for too long.
        """
        try:
            self._checkpoints.wait()
        except StorageError as error:
            self.failed(error)
        else:
            if self._running:
                self.succeeded()
        return self._error is None

    def finish(self, save: Callable[[], None], stopping: Callable[[], bool]) -> None:
        """Waits for the last save of a stage and, while it fails, repeats it.

        Raises:
          StorageError: saves have failed for too long, or `stopping` says to stop.
        """
        while not self.settle():
            while not self._is_time():
                if stopping():
                    self.give_up("stopped by SIGTERM")
                time.sleep(min(1.0, FIRST_RETRY_SECONDS))
            save()

    def _is_time(self) -> bool:
        return _of_first_process(self._seconds() >= self._again)


def patiently(write: Callable[[], object], minutes: float, say: Callable[[str], None]) -> None:
    """Repeats what fails because the storage is full or away, with growing pauses.

    Args:
      write: leaves the storage whole when it fails.
      minutes: after which its error is raised.
      say: tells the user of each failure.

    Raises:
      StorageError: it still fails.
    """
    until, pause = time.monotonic() + 60 * minutes, FIRST_RETRY_SECONDS
    while True:
        try:
            write()
            return
        except StorageError as error:
            left = until - time.monotonic()
            if left <= 0 or isinstance(error, LostLockError):
                raise
            pause = min(pause, left)
            say(f"{_without_advice(error)}: tried again in {duration(pause)}")
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_RETRY_SECONDS)


def _without_advice(error: Exception) -> str:
    """Returns the text of an error that does not end the run."""
    return str(error).removesuffix(START_AGAIN)


def _times(failures: int) -> str:
    return f"{failures} failed saves in a row" if failures > 1 else "1 failed save"


def _of_first_process(value: bool) -> bool:
    """Returns the first process's value on all processes."""
    if jax.process_count() > 1:
        value = bool(multihost_utils.broadcast_one_to_all(np.array(value)))
    return value


def kept_every(config: RunConfig) -> int:
    """Returns the steps between checkpoints that are never deleted; 0: none."""
    keep = config.checkpoint
    tokens_per_step = config.data.batch * config.data.length
    return keep.keep_every_steps or -(-keep.keep_every_tokens // tokens_per_step)
