"""Rows of an array on disk that is too large for memory, each chunk read about once."""

from collections.abc import Callable, Sequence

import numpy as np

from prts_jax.growth.widening import NEW, runs


class RowReader:
    """Takes rows of an array, and holds the chunks that it read last.

    Args:
      read: reads a slice of rows, `[r, …]`.
      row_count: of the array.
      chunk_rows: rows that lie in one chunk on disk: fewer are never read.
    """

    def __init__(
        self, read: Callable[[slice], np.ndarray], row_count: int, chunk_rows: int
    ) -> None:
        self._read, self._row_count, self._chunk_rows = read, row_count, chunk_rows
        self._first, self._held = 0, read(slice(0, min(chunk_rows, row_count)))

    def take(self, positions: Sequence[int]) -> np.ndarray:
        """Returns the rows at these positions, zeros for `NEW`; rising runs are taken together."""
        blank = np.zeros((1, *self._held.shape[1:]), self._held.dtype)
        parts = [
            np.repeat(blank, count, axis=0) if first == NEW else self._range(first, first + count)
            for first, count in runs(positions, step=1)
        ]
        return np.concatenate(parts)

    def _range(self, start: int, stop: int) -> np.ndarray:
        if start < self._first or stop > self._first + len(self._held):
            chunk = self._chunk_rows
            self._first = start // chunk * chunk
            self._held = self._read(
                slice(self._first, min(-(-stop // chunk) * chunk, self._row_count))
            )
        return self._held[start - self._first : stop - self._first]
