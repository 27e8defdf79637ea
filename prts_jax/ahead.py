"""One step ahead: the next value is made in a thread while the caller deals with this one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Value = TypeVar("Value")


def one_ahead(makers: Iterable[Callable[[], Value]]) -> Iterator[Value]:
    """Yields what the functions return, in their order; two values exist at a time.

    Args:
      makers: called in a thread, one after another, each while the caller has the value before.

    Raises:
      Whatever a function raises, when its value is asked for.
    """
    waiting: deque[Future[Value]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for make in makers:
            waiting.append(thread.submit(make))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
