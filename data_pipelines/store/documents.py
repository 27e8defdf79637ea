"""Documents of a store, and of spans of its tokens, with the input file and row of each."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data_pipelines.store.index import END_DTYPE, PADDING, read_index
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError


@dataclass(frozen=True)
class Part:
    """A document, or the part of it that a window holds.

    Attributes:
      document: its number in the store, from 1.
      file: its input file, relative to the folder of the input.
      row: its row there, see `store.ROW_DTYPE`; None in stores of older versions, and for padding.
      set: name of its set.
      size: tokens of the whole document.
      skipped: tokens of the document before the part.
      tokens: ids of the part, int32 [n].
    """

    document: int
    file: str
    row: int | None
    set: str
    size: int
    skipped: int
    tokens: np.ndarray

    def as_json(self) -> dict[str, Any]:
        """Returns the values as a JSON object, ids as a list."""
        return {**vars(self), "tokens": self.tokens.tolist()}

    def __str__(self) -> str:
        if self.set == PADDING:
            return f"padding, {self.size:,} tokens"
        row = "row unknown (store written by an older version)"
        row = row if self.row is None else f"row {self.row:,}"
        after = f" from its token {self.skipped + 1:,}" if self.skipped else ""
        return (
            f"document {self.document:,}{after}: {self.file}, {row}, set {self.set}, "
            f"{self.size:,} tokens"
        )


class Documents:
    """The documents of a store, or of some of its sets."""

    def __init__(self, store: TokenStore):
        """Takes an open store."""
        self.store = store
        self._shards = read_index(store.directory)["shards"]
        counts = np.array([shard["documents"] for shard in self._shards], np.int64)
        self._before = np.cumsum(counts) - counts  # documents before each shard

    def window(self, start: int, count: int) -> list[Part]:
        """Returns the documents in tokens [start, start + count), in order, each cut to them.

        Raises:
          IndexError: beyond the store.
        """
        tokens = self.store.read(start, count)
        return [
            self._part(shard, document, first, tokens[at : at + size])
            for shard, document, first, at, size in self._spans(start, count)
        ]

    def document(self, number: int) -> Part:
        """Returns a document of a whole store, counted from 1.

        Raises:
          UserError: no such document.
        """
        if not 1 <= number <= self.store.documents:
            has = f"documents 1 to {self.store.documents:,}" if self.store.documents else "none"
            raise UserError(f"--document={number}: {self.store.directory} has {has}")
        shard = int(np.searchsorted(self._before, number - 1, side="right")) - 1
        document = number - 1 - int(self._before[shard])
        ends, _ = self.store.descriptions(shard)
        first = int(ends[document - 1]) if document else 0
        before = sum(entry["tokens"] for entry in self._shards[:shard])
        tokens = self.store.read(before + first, int(ends[document]) - first)
        return self._part(shard, document, first, tokens)

    def _spans(self, start: int, count: int) -> Iterator[tuple[int, int, int, int, int]]:
        """Yields shard, document there, first token there, offset in the window, and tokens."""
        for shard, first, end, at in self.store.shard_spans(start, count):
            ends, _ = self.store.descriptions(shard)
            document = int(np.searchsorted(ends, np.array([first], END_DTYPE), side="right")[0])
            while first < end:
                stop = min(int(ends[document]), end)
                if first < stop:  # a document may be empty
                    yield shard, document, first, at, stop - first
                at, first, document = at + stop - first, stop, document + 1

    def _part(self, shard: int, document: int, first: int, tokens: np.ndarray) -> Part:
        ends, sources = self.store.descriptions(shard)
        begin, rows = int(ends[document - 1]) if document else 0, self.store.rows(shard)
        return Part(
            document=int(self._before[shard]) + document + 1,
            file=self._shards[shard]["source_file"],
            row=None if rows is None else int(rows[document]) or None,
            set=self.store.sources[int(sources[document])],
            size=int(ends[document]) - begin,
            skipped=first - begin,
            tokens=tokens,
        )
