"""Batches as a pure function of (store, seed, position): any number of hosts, O(1) seek.

A batch is a dictionary of NumPy arrays, each [rows, length]: `tokens` int32, `targets` int32 (the
tokens that follow), `loss_weights` float32 and `source_ids` int32 (of the target). Where documents
are kept apart there are also `segment_ids` and `positions`, int32: which of its row's documents a
token belongs to, from 0, and how far it is into it. Both begin at 0 with the row, also where its
first document began before: attention never leaves the row, and RoPE knows differences of positions
only. A target that begins a document would be predicted from another's end, so its weight is 0.
"""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from data_pipelines.batches.order import ReadOrder, check_rows, check_sizes
from data_pipelines.batches.permutation import permute
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError

Batch = dict[str, np.ndarray]

FIELDS = ("tokens", "targets", "loss_weights", "source_ids")
DOCUMENT_FIELDS = ("segment_ids", "positions")


@dataclass(frozen=True)
class TrainBatches:
    """Training windows, each once an epoch, in an order of its own for every epoch.

    Window i is tokens [i·length, i·length + length] of the store: `length` inputs and the same
    shifted by one as targets, so neighbours share one token and every token is a target once.

    Attributes:
      store: the tokens.
      order: the order in which they are read.
    """

    store: TokenStore
    order: ReadOrder

    def __post_init__(self) -> None:
        self._check_store()

    def _check_store(self) -> None:
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
        """Whether a position of the same blocks at another length is the same place here."""
        return self.order.block > 0 and position % self.order.length == 0

    def tokens(self, position: int) -> int:
        """Returns how many inputs of the global batch at a position are no padding."""
        return self.order.batch * self.order.length

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
        consumed = self.order.consumed(position, start, stop)
        tokens, sources, *offsets = self.windows(consumed)
        batch = {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "loss_weights": np.ones((len(consumed), self.order.length), np.float32),
            "source_ids": sources[:, 1:],
        }
        return keep_documents_apart(batch, offsets[0]) if self.order.documents else batch

    def windows(self, consumed: np.ndarray) -> np.ndarray:
        """Reads the run's windows `consumed`.

        Returns:
          int32 [2 or 3, n, length + 1]: tokens, source ids and, where documents are kept apart,
          how far each token is into its document.
        """
        stride, size = self.order.stride, self.order.length + 1
        starts = self.store_windows(consumed) * stride
        out = np.empty((2 + self.order.documents, len(starts), size), np.int32)
        # Windows that follow one another in the store are read in one piece.
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

    def store_windows(self, consumed: np.ndarray) -> np.ndarray:
        """Returns which window of the store each of the run's windows is; int64, the same shape."""
        epochs, windows = np.divmod(consumed, self.windows_per_epoch)
        if not self.order.shuffle:
            return windows
        together = self.order.block_windows
        blocks, within = np.divmod(windows, together)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            key = f"{self.order.seed}/{epoch}/{self.store.fingerprint}"
            blocks[here] = permute(blocks[here], self.windows_per_epoch // together, key)
        return blocks * together + within


@dataclass(frozen=True)
class EvalBatches:
    """The whole store in order: every token after the first is a target exactly once.

    Attributes:
      store: where the tokens lie.
      length: inputs of a row.
      batch: rows of a batch; what the last lacks is padded, with loss weight 0.
      limit_tokens: stop after so many targets.
      documents: as in `ReadOrder`.
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
        """Number of targets, the padding not counted; those of weight 0 are."""
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
        shape = (stop - start, self.length)
        first = (index * self.batch + start) * self.length
        count = min(max(self.target_tokens - first, 0), (stop - start) * self.length)

        tokens, targets, sources = (np.zeros(shape, np.int32) for _ in range(3))
        weights = np.zeros(shape, np.float32)
        if count:
            block = self.store.read(first, count + 1)
            tokens.reshape(-1)[:count] = block[:-1]
            targets.reshape(-1)[:count] = block[1:]
            sources.reshape(-1)[:count] = self.store.source_ids(first + 1, count)
            weights.reshape(-1)[:count] = 1
        batch = {
            "tokens": tokens,
            "targets": targets,
            "loss_weights": weights,
            "source_ids": sources,
        }
        if not self.documents:
            return batch
        # The padding is taken for a document that never ends.
        offsets = np.ones((shape[0], self.length + 1), np.int32)
        if count:
            found = np.ones(shape[0] * self.length + 1, np.int32)
            found[: count + 1] = self.store.document_offsets(first, count + 1)
            offsets = sliding_window_view(found, self.length + 1)[:: self.length]
        return keep_documents_apart(batch, offsets)


def keep_documents_apart(batch: Batch, offsets: np.ndarray) -> Batch:
    """Adds `segment_ids` and `positions`, and takes the loss off targets that begin a document.

    Args:
      batch: with the other arrays.
      offsets: int32 [rows, length + 1]: how far each token, and the last target, is into its
        document.
    """
    begins = offsets == 0
    begins_token = begins[:, :-1].copy()
    begins_token[:, 0] = False
    places = np.arange(offsets.shape[1] - 1, dtype=np.int32)
    return batch | {
        "segment_ids": np.cumsum(begins_token, axis=1, dtype=np.int32),
        "positions": np.minimum(offsets[:, :-1], places),
        "loss_weights": batch["loss_weights"] * ~begins[:, 1:],
    }
