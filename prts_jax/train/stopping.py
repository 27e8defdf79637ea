"""SIGTERM handling: a function that a loop calls after each step to learn whether to stop."""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

Stopping = Callable[[], bool]
"""Returns whether to stop now; all processes call it equally often and get the same answer."""


@contextlib.contextmanager
def sigterm() -> Iterator[Stopping]:
    """Yields a function that returns whether SIGTERM has come; the signal has no other effect.

    If any of several processes gets the signal, all stop after the same step.
    """
    if jax.process_count() > 1:
        # jax's coordination service handles the signal and chooses one call for all processes.
        calls = itertools.count(1)
        yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    received: list[int] = []
    previous = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, previous)
