"""SIGTERM, as a question that a loop asks after each step."""

import contextlib
import itertools
import signal
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

Stopping = Callable[[], bool]
"""Says whether to stop now; every process asks as often, and all get the same answer."""


@contextlib.contextmanager
def sigterm() -> Iterator[Stopping]:
    """Yields what says whether SIGTERM has come; the signal does nothing else in the meantime.

    Of several processes any one may get the signal; all of them stop after the same step.
    """
    if jax.process_count() > 1:
        # jax's own coordination service has taken the signal and agrees on a call for all.
        calls = itertools.count(1)
        yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)
