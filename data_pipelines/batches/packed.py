"""Batches of packed stores (`packing.py`): the loss is on answers, and examples are kept apart.

Rows are those of `loader.py` with documents kept apart: each example is a document, and so is a
row's padding. `loss_weights` is 1 for targets that are tokens of an answer, its end-of-text token
included, and 0 for others.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from data_pipelines.batches.loader import Batch, EvalBatches, TrainBatches
from data_pipelines.store.index import PADDING
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError


def check_packed(store: TokenStore, instructions: bool) -> None:
    """Raises UserError if the store is packed without `instructions`, or the reverse."""
    if instructions and not store.packed:
        raise UserError(
            f"{store.directory} does not mark answers: make the store with `prts data "
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
    """Rows of a packed store, each once an epoch, in a new order every epoch.

    The read order must match the packing: `length` the store's, `overlap` False, `documents` True.
    """

    def __post_init__(self) -> None:
        _check_length(self.store, self.order.length)
        if self.order.overlap or self.order.block or not self.order.documents:
            raise UserError(
                f"{self.store.directory} is packed: it needs overlap=False, block=0 and "
                "documents=True"
            )
        super().__post_init__()

    def weights(self, consumed: np.ndarray) -> np.ndarray:
        """Implements `TrainBatches.weights`."""
        spans = [(start + 1, self.order.length) for _, start in self.starts(consumed)]
        answers = np.array(self.store.read_answers(spans), np.float32)
        return answers.reshape(len(spans), self.order.length)

    def inputs(self, consumed: np.ndarray) -> int:
        """Implements `TrainBatches.inputs`; exact on every host, whichever rows it reads."""
        return int(self._row_tokens[self.store_windows(consumed)].sum())

    @functools.cached_property
    def _row_tokens(self) -> np.ndarray:
        """Inputs of each row of the store, padding excluded: int64 [rows]."""
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
    """All rows of a packed store in order, or the first rows, with at least `limit_tokens` inputs.

    Rows after the last are padding.
    """

    documents: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_length(self.store, self.length)

    @property
    def target_tokens(self) -> int:
        """Number of targets in whole rows; targets of weight 0 count."""
        limit = self.store.tokens if self.limit_tokens is None else self.limit_tokens
        rows = min(self.store.tokens // (self.length + 1), -(-limit // self.length))
        return rows * self.length

    def rows(self, index: int, start: int, stop: int) -> Batch:
        """Implements `EvalBatches.rows`."""
        batch = super().rows(index, start, stop)
        first, rows = index * self.batch + start, stop - start
        count = int(min(max(self.target_tokens - first * self.length, 0), rows * self.length))

        def read(start: int, count: int) -> np.ndarray:
            return self.store.read_answers([(start, count)])[0]

        answers = self._windows(read, first, rows, count)[:, 1:]
        return batch | {"loss_weights": batch["loss_weights"] * answers.astype(np.float32)}

    def _windows(
        self,
        read: Callable[[int, int], np.ndarray],
        first: int,
        rows: int,
        count: int,
        padding: int = 0,
    ) -> np.ndarray:
        size = self.length + 1
        values = np.full((rows, size), padding, np.int32)
        if whole := count // self.length:
            values[:whole] = read(first * size, whole * size).reshape(whole, size)
        return values


def eval_batches(
    store: TokenStore,
    length: int,
    batch: int,
    limit_tokens: int | None = None,
    documents: bool = False,
) -> EvalBatches:
    """Returns the evaluation batches of a store, packed or not; a packed one keeps documents apart.

    Raises:
      UserError: as `EvalBatches`, or a length that differs from a packed store's.
    """
    if store.packed:
        return PackedEvalBatches(store, length, batch, limit_tokens)
    return EvalBatches(store, length, batch, limit_tokens, documents)
