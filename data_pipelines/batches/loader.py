"""Training and evaluation batches as pure functions of a store and a position.

Any number of hosts reads its rows of the same batch, and a step costs the same wherever it is. A
batch is a dictionary of NumPy arrays, each [rows, length]: `tokens` int32, `targets` int32 (the
tokens that follow), `loss_weights` float32 and `source_ids` int32 (of the target).

With documents kept apart there are also `segment_ids` and `positions`, int32: the document of its
row that a token belongs to, from 0, and its distance from that document's start. Both start at 0 in
every row, also if its first document starts before it: attention never leaves the row, and RoPE
depends on differences of positions only. A target that starts a document has weight 0, because
another document's end would predict it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data_pipelines.batches.open_blocks import OpenBlocks
from data_pipelines.batches.order import OPEN_TOKENS, ReadOrder, check_rows, check_sizes
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError

Batch = dict[str, np.ndarray]

FIELDS = ("tokens", "targets", "loss_weights", "source_ids")
DOCUMENT_FIELDS = ("segment_ids", "positions")


@dataclass(frozen=True)
class TrainBatches:
    """Training windows, each once an epoch, in a new order every epoch.

    Window i is tokens [i·length, i·length + length] of the store: `length` inputs and the same
    shifted by one as targets, so neighbours share one token and every token is a target once.

    Attributes:
      open_tokens: tokens of the blocks that are interleaved.
    """

    store: TokenStore
    order: ReadOrder
    open_tokens: int = OPEN_TOKENS

    def __post_init__(self) -> None:
        if self.windows_per_epoch < 1:
            needed = max(self.order.length, self.order.block) + 1
            raise UserError(
                f"the store is smaller than one window: {self.store.directory} has "
                f"{self.store.tokens} tokens and length={self.order.length} needs {needed}; "
                "give a shorter length or more text"
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of a batch's arrays."""
        return FIELDS + DOCUMENT_FIELDS * self.order.documents

    @property
    def windows_per_epoch(self) -> int:
        """Number of whole windows in the store, or in its whole blocks."""
        if self.order.overlap:
            block = self.order.block or self.order.length
            return (self.store.tokens - 1) // block * self.order.block_windows
        return self.store.tokens // self.order.stride

    def keeps_position(self, position: int) -> bool:
        """Whether a position counted at another length, with equal blocks and pieces, is valid."""
        return self.order.block > 0 and position % self.order.length == 0

    def tokens(self, position: int) -> int:
        """Returns the number of inputs of the global batch at a position, padding excluded."""
        return self.inputs(self.order.consumed(position, 0, self.order.batch))

    def inputs(self, consumed: np.ndarray) -> int:
        """Returns the number of inputs in windows, by their number in the run, without padding."""
        return len(consumed) * self.order.length

    def rows(self, position: int, start: int, stop: int) -> Batch:
        """Returns rows [start, stop) of the global batch at a position.

        Args:
          position: tokens consumed before this batch, in the whole run: windows × length. Epochs
            follow one another, also within a batch.
          start: first row, of 0 … batch.
          stop: row after the last.

        Returns:
          The arrays named by `fields`, each [stop - start, length].

        Raises:
          UserError: the position is not between two windows (it was counted at another length).
        """
        return self.take(self.order.consumed(position, start, stop))

    def take(self, consumed: np.ndarray) -> Batch:
        """Returns windows by their number in the run: arrays [n, length], as `rows`."""
        tokens, sources, *offsets = self.windows(consumed)
        batch = {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "loss_weights": self.weights(consumed),
            "source_ids": sources[:, 1:],
        }
        return keep_documents_apart(batch, offsets[0]) if self.order.documents else batch

    def weights(self, consumed: np.ndarray) -> np.ndarray:
        """Returns the loss weight of each target of windows: float32 [n, length]."""
        return np.ones((len(consumed), self.order.length), np.float32)

    def windows(self, consumed: np.ndarray) -> np.ndarray:
        """Reads windows by their number in the run.

        Returns:
          int32 [2 or 3, n, length + 1]: tokens, source ids and, with documents kept apart, each
          token's distance from the start of its document.
        """
        stride, size = self.order.stride, self.order.length + 1
        starts = self.store_windows(consumed) * stride
        if self.order.shuffle and self.order.block_pieces > 1:
            blocks, offsets = np.divmod(starts, self.order.block)
            return self._open_blocks.read(blocks, offsets, self.order.length)
        out = np.empty((2 + self.order.documents, len(starts), size), np.int32)
        # Windows that are neighbours in the store are read in one piece.
        runs = np.split(np.arange(len(starts)), np.flatnonzero(np.diff(starts) != stride) + 1)
        runs = [run for run in runs if run.size]
        spans = [(int(starts[run[0]]), (len(run) - 1) * stride + size) for run in runs]
        for run, arrays in zip(
            runs, self.store.read_many(spans, self.order.documents), strict=True
        ):
            for kind, array in enumerate(arrays):
                if len(run) == 1:
                    out[kind, run[0]] = array
                else:
                    out[kind, run] = sliding_window_view(array, size)[::stride]
        return out

    def starts(self, consumed: np.ndarray) -> list[tuple[TokenStore, int]]:
        """Returns the store of each of the run's windows, and the window's first token in it."""
        return [
            (self.store, int(window) * self.order.stride) for window in self.store_windows(consumed)
        ]

    def store_windows(self, consumed: np.ndarray) -> np.ndarray:
        """Maps the run's windows to windows of the store; int64, the same shape."""
        epochs, windows = np.divmod(consumed, self.windows_per_epoch)
        if not self.order.shuffle:
            return windows
        count = self.windows_per_epoch // self.order.block_windows
        blocks, within = self.order.spread(windows, count, self.open_tokens)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = f"{self.order.seed}/{epoch}/{self.store.fingerprint}"
            blocks[here] = self.order.blocks_of(blocks[here], count, key)
        return blocks * self.order.block_windows + within

    @functools.cached_property
    def _open_blocks(self) -> OpenBlocks:
        order = self.order
        count = self.windows_per_epoch // order.block_windows
        together = order.apart(count, self.open_tokens) * order.block_pieces
        opened_by_a_batch = -(-order.batch // order.block_windows) + 1
        most = together + opened_by_a_batch
        return OpenBlocks(self.store, order.block, most, order.documents)


@dataclass(frozen=True)
class EvalBatches:
    """The whole store in order: every token after the first is a target exactly once.

    Attributes:
      batch: rows of a batch; the last batch is padded, with loss weight 0.
      limit_tokens: upper limit of targets; None for the whole store.
      documents: keeps documents apart.
    """

    store: TokenStore
    length: int
    batch: int
    limit_tokens: int | None = None
    documents: bool = False

    def __post_init__(self) -> None:
        check_sizes(self.length, self.batch)
        if self.limit_tokens is not None and self.limit_tokens < 1:
            raise UserError(f"limit_tokens={self.limit_tokens}: give at least 1, or none")
        if self.store.tokens < 2:
            raise UserError(
                f"nothing to evaluate on: {self.store.directory} has {self.store.tokens} tokens; "
                "give a store with at least 2"
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of a batch's arrays."""
        return FIELDS + DOCUMENT_FIELDS * self.documents

    @property
    def target_tokens(self) -> int:
        """Number of targets without padding; targets of weight 0 count."""
        available = self.store.tokens - 1
        return available if self.limit_tokens is None else min(available, self.limit_tokens)

    def __len__(self) -> int:
        return -(-self.target_tokens // (self.length * self.batch))

    def rows(self, index: int, start: int, stop: int) -> Batch:
        """Returns rows [start, stop) of batch `index`; shapes as `TrainBatches.rows`.

        Raises:
          IndexError: no such batch.
        """
        check_rows(start, stop, self.batch)
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        first, rows = index * self.batch + start, stop - start
        count = min(max(self.target_tokens - first * self.length, 0), rows * self.length)
        real = (np.arange(rows * self.length) < count).reshape(rows, self.length)
        tokens = self._windows(self.store.read, first, rows, count)
        batch = {
            "tokens": tokens[:, :-1] * real,
            "targets": tokens[:, 1:] * real,
            "loss_weights": real.astype(np.float32),
            "source_ids": self._windows(self.store.source_ids, first, rows, count)[:, 1:] * real,
        }
        if not self.documents:
            return batch
        # Padding counts as one document that never ends.
        offsets = self._windows(self.store.document_offsets, first, rows, count, padding=1)
        return keep_documents_apart(batch, offsets)

    def _windows(
        self,
        read: Callable[[int, int], np.ndarray],
        first: int,
        rows: int,
        count: int,
        padding: int = 0,
    ) -> np.ndarray:
        """Reads the windows of some rows, which hold `count` targets: int32 [rows, length + 1]."""
        values = np.full(rows * self.length + 1, padding, np.int32)
        if count:
            values[: count + 1] = read(first * self.length, count + 1)
        return values[np.arange(rows)[:, None] * self.length + np.arange(self.length + 1)]


def keep_documents_apart(batch: Batch, offsets: np.ndarray) -> Batch:
    """Adds `segment_ids` and `positions`; targets that start a document get loss weight 0.

    Args:
      batch: the other arrays.
      offsets: int32 [rows, length + 1]: distance of each token, and of the last target, from the
        start of its document.
    """
    begins = offsets == 0
    begins_token = begins[:, :-1].copy()
    begins_token[:, 0] = False
    columns = np.arange(offsets.shape[1] - 1, dtype=np.int32)
    return batch | {
        "segment_ids": np.cumsum(begins_token, axis=1, dtype=np.int32),
        "positions": np.minimum(offsets[:, :-1], columns),
        "loss_weights": batch["loss_weights"] * ~begins[:, 1:],
    }
