"""The token store: tokens on disk as flat arrays, one shard for each input file.

    DIR/index.json            what the store holds, its digests and its fingerprint; written last
    DIR/tokenizer.model       the SentencePiece model that made the tokens
    DIR/shard-00000.tokens    every document's tokens in order, little-endian uint16 (uint32 if the
                              vocabulary is larger than 65,536)
    DIR/shard-00000.ends      for each document the shard's token count after it, uint64
    DIR/shard-00000.sources   for each document its source id, uint8
    DIR/shard-00000.rows      for each document its row in the input file, uint32; see `ROW_DTYPE`
    DIR/shard-00000.answers   packed stores only: for each token 1 if it is part of an answer, uint8
    DIR/checksums             a checksum of each block of the shards' files (`checksums.py`)

A shard's documents are in the order of its input file (layout "mixed"), or one set after the other
in the order of the source ids (layout "by_set"). The index also lists, for each shard, the lines of
its input that were left out, by kind of fault.

A packed store (`packing.py`) consists of rows of equal size, each of whole documents and padding;
padding has its own source, `PADDING`. Tokens of a Hugging Face tokenizer come with tokenizer.json
instead of the SentencePiece model.

`writer.py` writes a store. Reading needs neither TensorFlow nor the `data` extra, and also works on
gs:// (`files.py`).
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from functools import lru_cache
from typing import Any

import numpy as np

from data_pipelines.store import fields
from data_pipelines.store.checksums import (
    CHECKSUMS,
    CRC_DTYPE,
    BlockChecked,
    DigestChecked,
    blocks,
)
from data_pipelines.store.files import Files, open_files
from prts_jax.errors import UserError, storage_error
from prts_jax.paths import as_path

FORMAT = 1
INDEX = "index.json"
TOKENIZER = "tokenizer.model"
TOKENIZER_FILES = (TOKENIZER, "tokenizer.json")
PADDING = "padding"
SEPARATOR = ";"  # of several stores in `config.data.train`; see `several.py`
END_DTYPE = np.dtype("<u8")
SOURCE_DTYPE = np.dtype("u1")
ROW_DTYPE = np.dtype("<u4")
"""Line of JSON lines, row of parquet, document of .bin, example of a seqio task, all from 1; 0 for
padding. Stores of older versions have no such file; no fingerprint depends on it."""
ANSWER_DTYPE = np.dtype("u1")
MAX_SETS = 256  # a source id is a byte
OPEN_DESCRIPTIONS = 128  # shards whose document ends stay open


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest of uint16 and uint32 that holds every token id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def fingerprint(index: Mapping[str, Any]) -> str:
    """Returns the sha256 of the content: tokens, documents, sources and vocabulary.

    Names of tasks and files, and the documents' rows in them, do not count.
    """
    content = [index[key] for key in ("format", "tokenizer_sha256", "vocab_size", "eos_id")]
    shards = [
        [
            s["tokens"],
            s["documents"],
            sorted(file for file in s["sha256"].items() if file[0] != "rows"),
        ]
        for s in index["shards"]
    ]
    return hashlib.sha256(json.dumps([*content, index["sources"], shards]).encode()).hexdigest()


def read_index(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads and checks the index of a finished store.

    Raises:
      UserError: no store, an unfinished one, or an index that is damaged or of another format.
    """
    path = as_path(directory) / INDEX
    remedy = f"copy {INDEX} again, or delete the store and cache again"
    try:
        index = fields.parse(path.read_bytes())
        if index["format"] != FORMAT:
            raise UserError(
                f"token store of format {index['format']!r:.20}, not {FORMAT}: {directory}; cache "
                "the text again"
            )
        if problem := next(fields.type_problems(index), ""):
            raise UserError(f"damaged index: {path}: {problem}; {remedy}")
    except FileNotFoundError as error:
        if SEPARATOR in os.fspath(directory):
            raise UserError(
                f"{os.fspath(directory)!r} names several stores, and only config.data.train takes "
                "several; name one"
            ) from error
        raise UserError(
            f"no finished token store: {directory}; make it with `prts data cache`"
        ) from error
    except OSError as error:
        raise storage_error(f"cannot read the token store {path}", error) from error
    except (ValueError, KeyError) as error:
        raise UserError(f"damaged index: {path}: {error}; {remedy}") from error
    if index["fingerprint"] != fingerprint(index):
        raise UserError(f"changed index: {path} does not match its fingerprint; {remedy}")
    if problem := next(fields.value_problems(index), ""):
        raise UserError(f"changed index: {path} {problem}; {remedy}")
    return index


def open_checked(directory: str | os.PathLike[str], index: Mapping[str, Any]) -> Files:
    """Opens a store's files, which are checked as they are read, after a check of their sizes.

    Args:
      directory: the store's folder, local or gs://.
      index: from `read_index`.

    Raises:
      UserError: a file is missing or has another size, or the checksums are damaged.
    """
    files, folder = open_files(directory), str(as_path(directory))
    actual = files.sizes()
    expected: dict[str, int] = {}
    for shard in index["shards"]:
        expected |= file_sizes(shard, index["vocab_size"])
    sizes = dict(expected)
    if recorded := index.get("checksums"):
        count = sum(blocks(size, recorded["block"]) for size in expected.values())
        sizes[CHECKSUMS] = count * CRC_DTYPE.itemsize
    for name, size in sizes.items():
        if actual.get(name) != size:
            raise UserError(
                f"damaged token store: {folder}/{size_fault(name, actual, size)}; delete the "
                "store, cache again"
            )
    if recorded:
        crcs = files.whole(CHECKSUMS, CRC_DTYPE, count)
        if hashlib.sha256(crcs.data).hexdigest() != recorded["sha256"]:
            raise UserError(
                f"damaged token store: {folder}/{CHECKSUMS} does not match its digest; copy that "
                "file again, or delete the store and cache again"
            )
        return BlockChecked(files, folder, expected, crcs, recorded["block"])
    digests = {
        f"{shard['name']}.{suffix}": digest
        for shard in index["shards"]
        for suffix, digest in shard["sha256"].items()
    }
    return DigestChecked(files, folder, expected, digests)


class TokenStore:
    """A finished store, or some of its sets, as one long array of tokens.

    Attributes:
      directory: its folder, local or gs://.
      fingerprint: sha256 of the content.
      vocab_size: number of token ids.
      eos_id: the id that ends a document.
      tokens: number of tokens.
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
    def open(cls, directory: str | os.PathLike[str]) -> "TokenStore":
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

    def pieces(self, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
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
        for shard, first, end, offset in self.pieces(start, count):
            out[offset : offset + end - first] = self._files.read(
                f"{self._names[shard]}.tokens", dtype, first, end
            )
        return out

    def read_many(
        self, spans: Sequence[tuple[int, int]], documents: bool = False
    ) -> list[tuple[np.ndarray, ...]]:
        """Returns (tokens, source ids), each int32 [count], of every (start, count); see `read`.

        On object storage the requests run at the same time.

        Args:
          spans: (start, count) of each.
          documents: adds `document_offsets` as a third array.
        """

        def read(span: tuple[int, int]) -> tuple[np.ndarray, ...]:
            both = self.read(*span), self.source_ids(*span)
            return (*both, self.document_offsets(*span)) if documents else both

        return self._files.map(read, list(spans))

    def read_answers(self, spans: Sequence[tuple[int, int]]) -> list[np.ndarray]:
        """Returns the answer marks of every (start, count) of a packed store: bool [count]."""

        def read(span: tuple[int, int]) -> np.ndarray:
            out = np.empty(span[1], bool)
            for shard, first, end, offset in self.pieces(*span):
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
        for shard, first, end, offset in self.pieces(start, count):
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
        for shard, first, end, offset in self.pieces(start, count):
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


def file_sizes(shard: Mapping[str, Any], vocab_size: int) -> dict[str, int]:
    """Returns the size in bytes of each file of a shard, an entry of the index, by name."""
    items = {
        "tokens": shard["tokens"] * token_dtype(vocab_size).itemsize,
        "ends": shard["documents"] * END_DTYPE.itemsize,
        "sources": shard["documents"] * SOURCE_DTYPE.itemsize,
    }
    if "answers" in shard["sha256"]:
        items["answers"] = shard["tokens"] * ANSWER_DTYPE.itemsize
    if "rows" in shard["sha256"]:
        items["rows"] = shard["documents"] * ROW_DTYPE.itemsize
    return {f"{shard['name']}.{suffix}": size for suffix, size in items.items()}


def size_fault(name: str, sizes: Mapping[str, int], expected: int) -> str:
    """Returns the words for a file that has another size than it should, or is missing."""
    return (
        f"{name} has {sizes[name]} bytes, not {expected}" if name in sizes else f"{name} is missing"
    )
