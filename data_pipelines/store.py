"""The token store: tokens on disk as flat arrays, one shard for each input file.

    DIR/index.json            what the store holds, its digests and its fingerprint; written last
    DIR/tokenizer.model       the SentencePiece model that made the tokens
    DIR/shard-00000.tokens    every document's tokens in order, little-endian uint16 (uint32 if the
                              vocabulary is larger than 65,536)
    DIR/shard-00000.ends      for each document the shard's token count after it, uint64
    DIR/shard-00000.sources   for each document its source id, uint8

A shard's documents lie in the order of its input file (layout "mixed"), or one set after the other
in the order of the source ids (layout "by_set"). The index also lists, for each shard, the lines of
its input that were left out, by the kind of fault.

Reading needs NumPy alone: memory maps, opened when first read.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from prts_jax.errors import UserError

FORMAT = 1
INDEX = "index.json"
TOKENIZER = "tokenizer.model"
TEMPORARY = ".tmp"
LAYOUTS = ("mixed", "by_set")
END_DTYPE = np.dtype("<u8")
SOURCE_DTYPE = np.dtype("u1")
OPEN_MAPS = 256  # a map holds a file descriptor, and a process may have as few as 1,024


@dataclass(frozen=True)
class Shard:
    """One shard's entry in the index.

    Attributes:
      name: the stem of its files.
      source_file: the input file it was made from, relative to the input's folder.
      source_bytes: that file's size.
      tokens: number of tokens.
      documents: number of documents.
      tokens_per_source: tokens of each source, in the order of the store's sources.
      sha256: digest of each of its files, by suffix.
      documents_per_source: documents of each source; empty in stores made before it was counted.
      bytes_per_source: UTF-8 bytes of each source's text; empty where the task does not know them.
      rows: lines of the input file that were looked at, those left out included.
      bad: lines left out, by kind (`rows.FAULTS`).
    """

    name: str
    source_file: str
    source_bytes: int
    tokens: int
    documents: int
    tokens_per_source: tuple[int, ...]
    sha256: Mapping[str, str]
    documents_per_source: tuple[int, ...] = ()
    bytes_per_source: tuple[int, ...] = ()
    rows: int = 0
    bad: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Shard":
        """Returns the shard whose `asdict` is `entry`, as JSON gave it back."""
        lists = {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
        return cls(**{**entry, **lists})


def token_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest of uint16 and uint32 that holds every token id."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


def write_shard(
    directory: Path,
    name: str,
    source_file: str,
    source_bytes: int,
    documents: Iterable[tuple[np.ndarray, int]],
    vocab_size: int,
    sources: int,
    by_set: bool = False,
) -> Shard:
    """Writes one shard's three files, each whole or not at all.

    Args:
      directory: the store's folder.
      name: the shard's name, `shard-00000`.
      source_file: recorded in the entry, as is its size `source_bytes`.
      source_bytes: see there.
      documents: (token ids [n], any integer dtype; source id) of each document, in order.
      vocab_size: ids must be below it.
      sources: number of sources; source ids must be below it.
      by_set: put each source's documents together; holds all of them in memory.

    Returns:
      The shard's entry for the index.

    Raises:
      UserError: an id out of range.
    """
    dtype = token_dtype(vocab_size)
    ends: list[int] = []
    source_ids: list[int] = []
    tokens_per_source, documents_per_source = [0] * sources, [0] * sources
    total = 0

    def encoded() -> Iterator[bytes]:
        nonlocal total
        for tokens, source in sorted(documents, key=itemgetter(1)) if by_set else documents:
            if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
                raise UserError(
                    f"token id out of range: {source_file}, document {len(ends)}; the task's "
                    f"vocabulary is larger than its tokenizer's {vocab_size} pieces"
                )
            if not 0 <= source < sources:
                raise UserError(f"source id {source} of {sources}: {source_file}; mend the task")
            total += tokens.size
            ends.append(total)
            source_ids.append(source)
            tokens_per_source[source] += tokens.size
            documents_per_source[source] += 1
            yield tokens.astype(dtype).tobytes()

    digests = {"tokens": _write(directory / f"{name}.tokens", encoded())}
    for suffix, array in (
        ("ends", np.array(ends, END_DTYPE)),
        ("sources", np.array(source_ids, SOURCE_DTYPE)),
    ):
        digests[suffix] = _write(directory / f"{name}.{suffix}", [array.tobytes()])
    return Shard(
        name=name,
        source_file=source_file,
        source_bytes=source_bytes,
        tokens=total,
        documents=len(ends),
        tokens_per_source=tuple(tokens_per_source),
        sha256=digests,
        documents_per_source=tuple(documents_per_source),
    )


def _write(path: Path, pieces: Iterable[bytes]) -> str:
    """Writes a file under a temporary name, renames it, and returns its sha256."""
    digest = hashlib.sha256()
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    with open(temporary, "wb") as file:
        for piece in pieces:
            file.write(piece)
            digest.update(piece)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return digest.hexdigest()


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    _write(path, [json.dumps(value, indent=1).encode()])


def write_index(
    directory: Path,
    *,
    identity: Mapping[str, Any],
    vocab_size: int,
    eos_id: int,
    sources: Sequence[str],
    shards: Sequence[Shard],
    layout: str = "mixed",
) -> None:
    """Completes a store: nothing opens it before this file is there.

    Args:
      directory: the store's folder.
      identity: what the store was made from (task, split, tokenizer_sha256, inputs).
      vocab_size: number of token ids.
      eos_id: the id that ends a document.
      sources: names of the sets, at most 256.
      shards: every shard, in order.
      layout: of `LAYOUTS`.
    """
    bad: Counter[str] = Counter()
    for shard in shards:
        bad.update({kind: len(lines) for kind, lines in shard.bad.items()})
    index = {
        "format": FORMAT,
        **identity,
        "layout": layout,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "sources": list(sources),
        "tokens": sum(shard.tokens for shard in shards),
        "documents": sum(shard.documents for shard in shards),
        "rows": sum(shard.rows for shard in shards),
        "bad": dict(sorted(bad.items())),
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(directory / INDEX, {**index, "fingerprint": fingerprint(index)})


def fingerprint(index: Mapping[str, Any]) -> str:
    """Returns the sha256 of what decides the batches: tokens, documents, sources, vocabulary.

    Names of tasks and files are left out, so the same content has the same fingerprint.
    """
    content = [index[key] for key in ("format", "tokenizer_sha256", "vocab_size", "eos_id")]
    shards = [[s["tokens"], s["documents"], sorted(s["sha256"].items())] for s in index["shards"]]
    return hashlib.sha256(json.dumps([*content, index["sources"], shards]).encode()).hexdigest()


def read_index(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a finished store's index and checks that it is whole.

    Raises:
      UserError: no store there, one that is unfinished, or an index that is damaged or newer.
    """
    path = Path(directory) / INDEX
    try:
        index = json.loads(path.read_bytes())
        if index["format"] != FORMAT:
            raise UserError(
                f"token store of format {index['format']}, not {FORMAT}: {directory}; cache the "
                "text again"
            )
        intact = index["fingerprint"] == fingerprint(index)
    except FileNotFoundError as error:
        raise UserError(
            f"no finished token store: {directory}; make it with `prts data cache`"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"damaged index: {path}; delete the store and cache again") from error
    if not intact:
        raise UserError(f"changed index: {path} does not match its fingerprint; cache again")
    return index


class TokenStore:
    """A finished store, read as one long array of tokens.

    Attributes:
      directory: its folder.
      fingerprint: sha256 of the content.
      vocab_size: number of token ids.
      eos_id: the id that ends a document.
      tokens: number of tokens.
      documents: number of documents.
      sources: names of the sets; a source id is an index into them.
    """

    def __init__(self, directory: str, index: Mapping[str, Any]):
        self.directory = directory
        self.fingerprint: str = index["fingerprint"]
        self.vocab_size: int = index["vocab_size"]
        self.eos_id: int = index["eos_id"]
        self.tokens: int = index["tokens"]
        self.documents: int = index["documents"]
        self.sources: tuple[str, ...] = tuple(index["sources"])
        self._names = [shard["name"] for shard in index["shards"]]
        self._ends = np.cumsum([shard["tokens"] for shard in index["shards"]], dtype=np.int64)
        self._dtypes = {
            "tokens": token_dtype(self.vocab_size),
            "ends": END_DTYPE,
            "sources": SOURCE_DTYPE,
        }
        self._map = lru_cache(OPEN_MAPS)(self._open_map)

    @classmethod
    def open(cls, directory: str | os.PathLike[str]) -> "TokenStore":
        """Opens a store after checking the index and the size of every file.

        Raises:
          UserError: the store is missing, unfinished or damaged.
        """
        index = read_index(directory)
        store = cls(os.fspath(directory), index)
        for shard in index["shards"]:
            for suffix, dtype in store._dtypes.items():
                items = shard["tokens"] if suffix == "tokens" else shard["documents"]
                store._check_size(f"{shard['name']}.{suffix}", items * dtype.itemsize)
        return store

    def _check_size(self, name: str, expected: int) -> None:
        path = Path(self.directory) / name
        actual = path.stat().st_size if path.exists() else None
        if actual != expected:
            found = "is missing" if actual is None else f"has {actual} bytes, not {expected}"
            raise UserError(f"damaged token store: {path} {found}; delete the store, cache again")

    def _open_map(self, shard: int, suffix: str) -> np.ndarray:
        path = Path(self.directory) / f"{self._names[shard]}.{suffix}"
        return np.memmap(path, dtype=self._dtypes[suffix], mode="r")

    def _pieces(self, start: int, count: int) -> Iterator[tuple[int, int, int, int]]:
        """Yields (shard, first and end token within it, offset in the result)."""
        if start < 0 or count < 0 or start + count > self.tokens:
            raise IndexError(f"tokens [{start}, {start + count}) of {self.tokens}")
        shard = int(np.searchsorted(self._ends, start, side="right"))
        done = 0
        while done < count:
            size = int(self._ends[shard] - (self._ends[shard - 1] if shard else 0))
            first = start + done - (int(self._ends[shard]) - size)
            end = min(size, first + count - done)
            if end > first:
                yield shard, first, end, done
                done += end - first
            shard += 1

    def read(self, start: int, count: int) -> np.ndarray:
        """Returns tokens [start, start + count), across shards: int32 [count].

        Raises:
          IndexError: beyond the store.
        """
        out = np.empty(count, np.int32)
        for shard, first, end, offset in self._pieces(start, count):
            out[offset : offset + end - first] = self._map(shard, "tokens")[first:end]
        return out

    def source_ids(self, start: int, count: int) -> np.ndarray:
        """Returns the source id of the document that each token belongs to: int32 [count].

        Raises:
          IndexError: beyond the store.
        """
        out = np.empty(count, np.int32)
        for shard, first, end, offset in self._pieces(start, count):
            ends = self._map(shard, "ends")
            documents = slice(
                int(np.searchsorted(ends, first, side="right")),
                int(np.searchsorted(ends, end - 1, side="right")) + 1,
            )
            borders = np.minimum(ends[documents].astype(np.int64), end)
            lengths = np.diff(borders, prepend=first)
            out[offset : offset + end - first] = np.repeat(
                self._map(shard, "sources")[documents], lengths
            )
        return out
