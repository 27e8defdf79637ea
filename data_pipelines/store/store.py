"""The token store as one long array of tokens, of all its sets or of some.

`index.py` describes the files. Reading needs neither TensorFlow nor the `data` extra.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np

from data_pipelines.store.files import Files
from data_pipelines.store.index import (
    ANSWER_DTYPE,
    END_DTYPE,
    ROW_DTYPE,
    SOURCE_DTYPE,
    open_checked,
    read_index,
    token_dtype,
)
from prts_jax.errors import UserError
from prts_jax.paths import PathLike

OPEN_DESCRIPTIONS = 128  # shards whose document ends stay open


class TokenStore:
    """A finished store, or some of its sets, as one long array of tokens.

    Attributes:
      directory: its folder, local or gs://.
      fingerprint: sha256 of the content.
      eos_id: the id that ends a document.
      documents: number of documents of the whole store.
      sources: names of the sets; a source id is an index into them.
      layout: "mixed" or "by_set"; see `prts data cache --layout`.
      tokenizer: sha256 of the SentencePiece model, or tokenizer.json, that made the tokens.
      packed: inputs of a row of a packed store; 0 for other stores.
    """

    def __init__(self, directory: str, index: Mapping[str, Any], files: Files):
        """Takes a checked index; `open` checks one."""
        self.directory = directory
        self.fingerprint: str = index["fingerprint"]
        self.vocab_size: int = index["vocab_size"]
        self.eos_id: int = index["eos_id"]
        self.documents: int = index["documents"]
        self.sources: tuple[str, ...] = tuple(index["sources"])
        self.layout: str = index.get("layout", "mixed")
        self.tokenizer: str = index["tokenizer_sha256"]
        self.packed: int = index.get("packing", {}).get("length", 0)
        self._files = files
        self._names = [shard["name"] for shard in index["shards"]]
        self._has_rows = ["rows" in shard.get("sha256", ()) for shard in index["shards"]]
        self._shard_documents = [shard["documents"] for shard in index["shards"]]
        self._per_source = np.array(
            [shard["tokens_per_source"] for shard in index["shards"]], np.int64
        ).reshape(len(self._names), len(self.sources))
        self._section_ends = np.cumsum(self._per_source, axis=1)
        self._chosen = list(range(len(self.sources)))
        per_shard = self._per_source.sum(axis=1)
        self._take(np.arange(len(self._names)), np.zeros_like(per_shard), per_shard)
        self.descriptions = lru_cache(OPEN_DESCRIPTIONS)(self._read_descriptions)
        self.rows = lru_cache(OPEN_DESCRIPTIONS)(self._read_rows)

    def _take(self, shards: np.ndarray, offsets: np.ndarray, sizes: np.ndarray) -> None:
        """Sets the array to tokens [offset, offset + size) of each shard, in order."""
        present = sizes > 0
        self._shards, self._offsets = shards[present], offsets[present]
        self._ends = np.cumsum(sizes[present], dtype=np.int64)
        self.tokens = int(self._ends[-1]) if self._ends.size else 0

    @classmethod
    def open(cls, directory: PathLike) -> "TokenStore":
        """Opens a store after checks of the index and of every file's size.

        Raises:
          UserError: the store is missing, unfinished or damaged.
        """
        index = read_index(directory)
        return cls(os.fspath(directory), index, open_checked(directory, index))

    def only(self, names: Iterable[str]) -> "TokenStore":
        """Returns the tokens of some sets as a store with its own fingerprint.

        Raises:
          UserError: an unknown set, or a store with layout "mixed".
        """
        chosen = sorted(self._source(name) for name in names)
        if chosen == list(range(len(self.sources))):
            return self
        if self.layout != "by_set":
            raise UserError(
                f"sets lie mixed in {self.directory}: cache with --layout=by_set to choose sets "
                "when training"
            )
        some = copy(self)
        some._chosen = chosen
        some._take(*(array.ravel() for array in some._sections()))
        content = f"{self.fingerprint} {[self.sources[source] for source in chosen]}"
        some.fingerprint = hashlib.sha256(content.encode()).hexdigest()
        return some

    def set_by_set(self) -> "TokenStore":
        """Returns the same tokens one set after the other, over all shards, where they lie so."""
        if self.layout != "by_set":
            return self
        ordered = copy(self)
        ordered._take(*(array.T.ravel() for array in self._sections()))
        return ordered

    def _sections(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns shard, first token and tokens of each chosen set: int64 [shards, sets]."""
        begins, sizes = self._section_ends - self._per_source, self._per_source
        shards = np.broadcast_to(np.arange(len(self._names))[:, None], sizes.shape)
        return shards[:, self._chosen], begins[:, self._chosen], sizes[:, self._chosen]

    def _source(self, name: str) -> int:
        if name not in self.sources:
            raise UserError(
                f"no set {name!r} in {self.directory}: it has {', '.join(self.sources)}"
            )
        return self.sources.index(name)

    def _read_descriptions(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """Reads the token count after each document of a shard, and each document's source."""
        name, documents = self._names[shard], self._shard_documents[shard]
        return (
            self._files.whole(f"{name}.ends", END_DTYPE, documents),
            self._files.whole(f"{name}.sources", SOURCE_DTYPE, documents),
        )

    def _read_rows(self, shard: int) -> np.ndarray | None:
        """Reads the row of each document of a shard; None in a store of an older version."""
        if not self._has_rows[shard]:
            return None
        name, documents = self._names[shard], self._shard_documents[shard]
        return self._files.whole(f"{name}.rows", ROW_DTYPE, documents)

    def shard_spans(self, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields the parts of tokens [start, start + count) in each shard, in order.

        Each is (shard, first and end token within it, offset in the result).

        Raises:
          IndexError: beyond the store.
        """
        if start < 0 or count < 0 or start + count > self.tokens:
            raise IndexError(f"tokens [{start}, {start + count}) of {self.tokens}")
        segment = int(np.searchsorted(self._ends, start, side="right"))
        done = 0
        while done < count:
            begin = int(self._ends[segment - 1]) if segment else 0
            size = min(int(self._ends[segment]) - start - done, count - done)
            first = int(self._offsets[segment]) + start + done - begin
            yield int(self._shards[segment]), first, first + size, done
            done += size
            segment += 1

    def read(self, start: int, count: int) -> np.ndarray:
        """Returns tokens [start, start + count), across shards: int32 [count].

        Raises:
          IndexError: beyond the store.
        """
        out, dtype = np.empty(count, np.int32), token_dtype(self.vocab_size)
        for shard, first, end, offset in self.shard_spans(start, count):
            out[offset : offset + end - first] = self._files.read(
                f"{self._names[shard]}.tokens", dtype, first, end
            )
        return out

    def read_many(
        self, spans: Sequence[tuple[int, int]], documents: bool = False
    ) -> list[tuple[np.ndarray, ...]]:
        """Returns (tokens, source ids), each int32 [count], of every (start, count); see `read`.

        On object storage the requests run at the same time. `documents` adds `document_offsets` as
        a third array.
        """

        def read(span: tuple[int, int]) -> tuple[np.ndarray, ...]:
            both = self.read(*span), self.source_ids(*span)
            return (*both, self.document_offsets(*span)) if documents else both

        return self._files.map(read, list(spans))

    def read_answers(self, spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Returns the answer marks of every (start, count) of a packed store: bool [count]."""

        def read(span: tuple[int, int]) -> np.ndarray:
            out = np.empty(span[1], bool)
            for shard, first, end, offset in self.shard_spans(*span):
                out[offset : offset + end - first] = self._files.read(
                    f"{self._names[shard]}.answers", ANSWER_DTYPE, first, end
                )
            return out

        return self._files.map(read, list(spans))

    def source_ids(self, start: int, count: int) -> np.ndarray:
        """Returns the source id of each token's document: int32 [count].

        Raises:
          IndexError: beyond the store.
        """
        out = np.empty(count, np.int32)
        for shard, first, end, offset in self.shard_spans(start, count):
            if self.layout == "by_set":
                # The index knows them, so that a window on object storage is a single request.
                borders = np.clip(self._section_ends[shard], first, end)
                sources, sizes = np.arange(len(borders)), np.diff(borders, prepend=first)
            else:
                _, sources, sizes = self._documents(shard, first, end)
            # Most windows lie in one document.
            ids = sources[0] if len(sources) == 1 else np.repeat(sources, sizes)
            out[offset : offset + end - first] = ids
        return out

    def document_offsets(self, start: int, count: int) -> np.ndarray:
        """Returns each token's distance from the start of its document: int32 [count].

        Raises:
          IndexError: beyond the store.
        """
        out = np.empty(count, np.int32)
        for shard, first, end, offset in self.shard_spans(start, count):
            begins, _, sizes = self._documents(shard, first, end)
            begin = begins[0] if len(begins) == 1 else np.repeat(begins, sizes)
            out[offset : offset + end - first] = np.arange(first, end) - begin
        return out

    def document_ends(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads the token count after each document of the whole store, int64, and its source."""
        pairs = self._files.map(self._read_descriptions, list(range(len(self._names))))
        before = np.concatenate([[0], np.cumsum(self._per_source.sum(axis=1))])
        ends = [
            ends.astype(np.int64) + first for (ends, _), first in zip(pairs, before, strict=False)
        ]
        return np.concatenate(ends), np.concatenate([sources for _, sources in pairs])

    def _documents(
        self, shard: int, first: int, end: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns start, source and tokens in the span of each document in tokens [first, end)."""
        ends, sources = self.descriptions(shard)
        # For an int, NumPy would convert a copy of all ends to float64.
        borders = np.array([first, end - 1], END_DTYPE)
        document, last = np.searchsorted(ends, borders, side="right").tolist()
        borders = ends[document : last + 1].astype(np.int64)
        begins = np.empty_like(borders)
        begins[0] = ends[document - 1] if document else 0
        begins[1:] = borders[:-1]
        sizes = np.minimum(borders, end) - np.maximum(begins, first)
        return begins, sources[document : last + 1], sizes
