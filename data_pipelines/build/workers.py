"""A function mapped over numbers by several processes, which end when their parent ends."""

import concurrent.futures
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from prts_jax.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def results(
    work: Callable[[Task, int], Result], task: Task, numbers: Iterable[int], workers: int
) -> Iterator[Result]:
    """Yields work(task, number) for every number, in the order of completion.

    `work` is a function of a module, which pickle sends by name; `task` is sent once to each
    process. One worker runs in this process, in order. After an error, running work ends and no new
    work starts.

    Raises:
      UserError: no worker, or a process died. An error of `work` is raised unchanged.
    """
    if workers < 1:
        raise UserError(f"--workers={workers}: give at least 1")
    if workers == 1:
        for number in numbers:
            yield work(task, number)
        return
    # Spawned, not forked: a fork of a process that runs TensorFlow's or JAX's threads can hang.
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, _begin, (work, task)) as pool:
        futures: list[concurrent.futures.Future[Result]] = [
            pool.submit(_one, number) for number in numbers
        ]
        try:
            for future in concurrent.futures.as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process died, most likely for lack of memory: start again with fewer "
                "--workers; finished shards are kept"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(work: Callable[[Task, int], Result], task: Task) -> None:
    global _work
    _work = functools.partial(work, task)
    # Ctrl-C reaches every process of the terminal; only the parent handles it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process with its parent; otherwise it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


_work: Callable[[int], Any]


def _one(number: int) -> Any:
    return _work(number)
