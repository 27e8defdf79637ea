"""From rows on the host to batches on the mesh, ahead of time."""

import collections
import concurrent.futures
import contextvars
import functools
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from prts_jax.mesh import sharding

T = TypeVar("T")


def shard_batch(
    mesh: Mesh,
    rows: Callable[[int, int], dict[str, np.ndarray]],
    shape: tuple[int, int],
    names: Sequence[str],
) -> dict[str, jax.Array]:
    """Makes the global batch, each process reading only the rows its devices hold.

    Args:
      mesh: the rows are split over its data axes, in order.
      rows: (start, stop) → arrays [stop - start, length] by name; a pure function, so that all
        processes see parts of the same batch.
      shape: (batch, length) of the global arrays.
      names: which arrays to place.

    Returns:
      Global arrays [batch, length] by name.
    """
    read: dict[tuple[int, int], dict[str, np.ndarray]] = {}

    def part(name: str, index: tuple[slice, ...]) -> np.ndarray:
        start, stop, _ = index[0].indices(shape[0])
        if (start, stop) not in read:
            read[start, stop] = rows(start, stop)
        return read[start, stop][name][:, index[1]]

    where = sharding(mesh, ("batch", "length"))
    return {
        name: jax.make_array_from_callback(shape, where, functools.partial(part, name))
        for name in names
    }


def prefetch(make: Callable[[int], T], first: int, stop: int, ahead: int = 2) -> Generator[T]:
    """Yields make(first) … make(stop - 1), made in order by a thread that runs `ahead` of use.

    An error of `make` is raised where its result is asked for.
    """
    with concurrent.futures.ThreadPoolExecutor(1, "prefetch") as pool:
        waiting: collections.deque[concurrent.futures.Future[T]] = collections.deque()
        upcoming = iter(range(first, stop))
        try:
            while True:
                while len(waiting) <= ahead and (index := next(upcoming, None)) is not None:
                    # A context knows the sharding rules.
                    waiting.append(pool.submit(contextvars.copy_context().run, make, index))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
