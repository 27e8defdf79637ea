"""The spans of a store that the rows of a batch hold."""

import numpy as np

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.mixture import MixedBatches
from data_pipelines.store.store import TokenStore


def row_spans(
    batches: TrainBatches, position: int, start: int, stop: int
) -> list[tuple[TokenStore, int]]:
    """Returns the store, or some sets of it, and the first token there of rows of a batch.

    Args:
      batches: batches of a run.
      position: tokens consumed before the batch, as in `TrainBatches.rows`.
      start: first row, of 0 … batch.
      stop: row after the last.

    Returns:
      One pair a row; the row's inputs and last target are length + 1 tokens from there.
    """
    return _spans(batches, batches.order.consumed(position, start, stop))


def _spans(batches: TrainBatches, consumed: np.ndarray) -> list[tuple[TokenStore, int]]:
    if isinstance(batches, MixedBatches):
        parts = batches._parts
        sets, windows = batches.deal(consumed)
        return [
            span
            for number, window in zip(sets.tolist(), windows, strict=True)
            for span in _spans(parts[number], window[None])
        ]
    starts = batches.store_windows(consumed) * batches.order.stride
    return [(batches.store, start) for start in starts.tolist()]
