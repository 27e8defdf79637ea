"""Batches of packed stores (`packing.py`): the loss is on the answers, examples are kept apart.

Rows are as in `loader.py` with documents kept apart: each example is a document, and so is a row's
padding. `loss_weights` is 1 where the target is a token of an answer, its end-of-text token
included, and 0 elsewhere.
"""

import functools
from dataclasses import dataclass

import numpy as np

from data_pipelines.batches.loader import (
    Batch,
    EvalBatches,
    TrainBatches,
    keep_documents_apart,
)
from data_pipelines.batches.order import check_rows
from data_pipelines.store.store import PADDING, TokenStore
from prts_jax.errors import UserError


def check_packed(store: TokenStore, instructions: bool) -> None:
    """Refuses a store that is packed where none is asked for, or not where one is.

    Raises:
      UserError: it is the other kind.
    """
    if instructions and not store.packed:
        raise UserError(
            f"{store.directory} does not say what is an answer: make the store with `prts data "
            "instructions`, or set config.data.instructions=False to train on all of its tokens"
        )
    if store.packed and not instructions:
        raise UserError(
            f"{store.directory} holds packed instructions: begin from configs/sft.py, or set "
            "config.data.instructions=True"
        )


def _check_length(store: TokenStore, length: int) -> None:
    if length != store.packed:
        raise UserError(
            f"config.data.length: {length} is not that of {store.directory}, whose rows were "
            f"packed with --length={store.packed}; set it to that, or prepare the store again"
        )


@dataclass(frozen=True)
class PackedBatches(TrainBatches):
    """Rows of a packed store, each once an epoch, in an order of its own for every epoch.

    The order's `length` must be the store's, `overlap` False and `documents` True: so the rows
    were packed.
    """

    def _check_store(self) -> None:
        _check_length(self.store, self.order.length)
        if self.order.overlap or self.order.block or not self.order.documents:
            raise UserError(
                f"{self.store.directory} is packed: it needs overlap=False, block=0 and "
                "documents=True"
            )
        super()._check_store()

    def rows(self, position: int, start: int, stop: int) -> Batch:
        """Implements `TrainBatches.rows`."""
        batch = super().rows(position, start, stop)
        rows = self.store_windows(self.order.consumed(position, start, stop))
        spans = [(int(row) * self.order.stride + 1, self.order.length) for row in rows]
        answers = np.array(self.store.read_answers(spans)).reshape(len(spans), self.order.length)
        return batch | {"loss_weights": batch["loss_weights"] * answers}

    def tokens(self, position: int) -> int:
        """Implements `TrainBatches.tokens`; exact on every host, whichever rows it reads."""
        rows = self.store_windows(self.order.consumed(position, 0, self.order.batch))
        return int(self._row_tokens[rows].sum())

    @functools.cached_property
    def _row_tokens(self) -> np.ndarray:
        """Inputs of each row of the store that are no padding: int64 [rows]."""
        ends, sources = self.store.document_ends()
        sizes = np.diff(ends, prepend=0)
        padding = sources == self.store.sources.index(PADDING)
        size = self.order.stride
        tokens = np.full(self.store.tokens // size, self.order.length)
        # Padding ends its row, and the row's last token is a target only.
        tokens[(ends[padding] - 1) // size] = size - sizes[padding]
        return tokens


@dataclass(frozen=True)
class PackedEvalBatches(EvalBatches):
    """All rows of a packed store in order, or the first that hold `limit_tokens` inputs."""

    documents: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_length(self.store, self.length)

    @property
    def target_tokens(self) -> int:
        """Number of targets, those of weight 0 included."""
        limit = self.store.tokens if self.limit_tokens is None else self.limit_tokens
        rows = min(self.store.tokens // (self.length + 1), -(-limit // self.length))
        return rows * self.length

    def rows(self, index: int, start: int, stop: int) -> Batch:
        """As `EvalBatches.rows`; rows beyond the last are padding."""
        check_rows(start, stop, self.batch)
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of {len(self)}")
        size = self.length + 1
        first = index * self.batch + start
        count = min(max(self.target_tokens // self.length - first, 0), stop - start)
        span = (first * size, count * size) if count else (0, 0)

        def whole(found: np.ndarray, filling: int = 0) -> np.ndarray:
            rows = np.full((stop - start, size), filling, np.int32)
            rows[:count] = found.reshape(count, size)
            return rows

        tokens = whole(self.store.read(*span))
        batch = {
            "tokens": tokens[:, :-1],
            "targets": tokens[:, 1:],
            "loss_weights": whole(self.store.read_answers([span])[0])[:, 1:].astype(np.float32),
            "source_ids": whole(self.store.source_ids(*span))[:, 1:],
        }
        # A row beyond the last is taken for one document that never ends.
        return keep_documents_apart(batch, whole(self.store.document_offsets(*span), filling=1))


def eval_batches(
    store: TokenStore,
    length: int,
    batch: int,
    limit_tokens: int | None = None,
    documents: bool = False,
) -> EvalBatches:
    """Returns the batches that a store is evaluated on, packed if it is.

    Args:
      store: what to predict.
      length: see `EvalBatches`, as for the rest.
      batch: see there.
      limit_tokens: see there.
      documents: see there; a packed store's are always kept apart.

    Raises:
      UserError: as `EvalBatches`; or another length than a packed store's.
    """
    if store.packed:
        return PackedEvalBatches(store, length, batch, limit_tokens)
    return EvalBatches(store, length, batch, limit_tokens, documents)
