"""Writers of a token store: its shards, and the index that completes it (`index.py`)."""

import json
import os
import threading
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from data_pipelines.store.checksums import BLOCK, CHECKSUMS, Digests
from data_pipelines.store.fields import INDEX_DIGEST, index_digest
from data_pipelines.store.index import (
    ANSWER_DTYPE,
    END_DTYPE,
    FORMAT,
    INDEX,
    ROW_DTYPE,
    SOURCE_DTYPE,
    file_sizes,
    fingerprint,
    token_dtype,
)
from prts_jax.errors import UserError
from prts_jax.paths import is_remote

TEMPORARY = ".tmp"
UNKNOWN = -1  # bytes of a text


class Encoded(NamedTuple):
    """A tokenized document.

    Attributes:
      tokens: token ids, end-of-text id included, any integer dtype [n].
      source: source id, an index into the store's sources.
      text_bytes: UTF-8 bytes of the text; None if unknown.
      answers: uint8 [n], 1 for tokens of an answer; None if the document is plain text.
      truncated: whether its end was cut off.
      row: its row in the input file, see `store.ROW_DTYPE`; 0 if unknown.
    """

    tokens: np.ndarray
    source: int
    text_bytes: int | None = None
    answers: np.ndarray | None = None
    truncated: bool = False
    row: int = 0


@dataclass(frozen=True)
class Shard:
    """One shard's entry in the index.

    Attributes:
      source_file: the input file it was made from, relative to the input's folder.
      tokens_per_source: tokens of each source, in the order of the store's sources.
      sha256: digest of each of its files, by suffix.
      documents_per_source: documents of each source; empty in stores made before it was counted.
      bytes_per_source: UTF-8 bytes of each source's text; empty where the task does not know them.
      rows: lines of the input file, those left out included.
      bad: lines left out, by kind (`rows.FAULTS`).
      truncated: documents whose end was cut off.
      checksums: CRC-32 of each block of each of its files, by suffix, as hexadecimal digits of the
        file of checksums; left out of the index.
      lost_bytes: bytes of the input file that damage loses.
      source_sha256: expected digest of the input file, which it has; empty if none is expected.
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
    truncated: int = 0
    checksums: Mapping[str, str] = field(default_factory=dict)
    lost_bytes: int = 0
    source_sha256: str = ""

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Shard":
        """Reads a shard from its JSON entry."""
        lists = {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
        return cls(**{**entry, **lists})


def write_shard(
    directory: epath.Path,
    name: str,
    source_file: str,
    source_bytes: int,
    documents: Iterable[Encoded],
    vocab_size: int,
    sources: int,
    by_set: bool = False,
) -> Shard:
    """Writes one shard's files, each whole or not at all; returns its entry for the index.

    All documents or none have `answers`. Ids are below `vocab_size`, source ids below `sources`.
    `by_set` puts each source's documents together, which holds all of them in memory.

    Raises:
      UserError: an id out of range.
    """
    dtype = token_dtype(vocab_size)
    columns = array("q")  # five values a document
    answers: list[bytes] = []

    def encoded() -> Iterator[bytes]:
        for document in sorted(documents, key=itemgetter(1)) if by_set else documents:
            ids, size = document.tokens, document.text_bytes
            _check(document, f"{source_file}, row {document.row}", vocab_size, sources)
            known = UNKNOWN if size is None else size
            columns.extend((ids.size, document.source, document.row, known, document.truncated))
            if document.answers is not None:
                answers.append(document.answers.astype(ANSWER_DTYPE).tobytes())
            yield ids.astype(dtype).tobytes()

    written = {"tokens": _write(directory / f"{name}.tokens", encoded())}
    sizes, source_ids, rows, text_bytes, truncated = np.array(columns, np.int64).reshape(-1, 5).T
    files: dict[str, Iterable[bytes]] = {
        "ends": [np.cumsum(sizes).astype(END_DTYPE).tobytes()],
        "sources": [source_ids.astype(SOURCE_DTYPE).tobytes()],
        "answers": answers,
        "rows": [rows.astype(ROW_DTYPE).tobytes()] if rows.any() else [],
    }
    for suffix, content in files.items():
        if content:
            written[suffix] = _write(directory / f"{name}.{suffix}", content)
    return Shard(
        name=name,
        source_file=source_file,
        source_bytes=source_bytes,
        sha256={suffix: digests.sha256 for suffix, digests in written.items()},
        checksums={suffix: digests.crcs.hex() for suffix, digests in written.items()},
        truncated=int(truncated.sum()),
        **_counts(sizes, source_ids, text_bytes, sources),
    )


def _counts(
    sizes: np.ndarray, source_ids: np.ndarray, text_bytes: np.ndarray, sources: int
) -> dict[str, Any]:
    """Returns a shard's tokens and documents, and both and the text's bytes by source."""

    def by_source(values: np.ndarray) -> tuple[int, ...]:
        return tuple(np.bincount(source_ids, values, sources).astype(np.int64).tolist())

    return {
        "tokens": int(sizes.sum()),
        "documents": len(sizes),
        "tokens_per_source": by_source(sizes),
        "documents_per_source": by_source(np.ones_like(sizes)),
        "bytes_per_source": () if (text_bytes == UNKNOWN).any() else by_source(text_bytes),
    }


def _check(document: Encoded, where: str, vocab_size: int, sources: int) -> None:
    """Raises UserError if an id or the source of a document is out of range."""
    ids, source = document.tokens, document.source
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < vocab_size:
        raise UserError(
            f"token id out of range: {where}; the task's vocabulary is larger than its "
            f"tokenizer's {vocab_size} pieces"
        )
    if not 0 <= source < sources:
        raise UserError(f"source id {source} of {sources}: {where}; fix the task's source ids")


def _write(path: epath.Path, pieces: Iterable[bytes]) -> Digests:
    """Writes a file whole or not at all, and returns its digests."""
    digests = Digests()
    if is_remote(path):  # an object appears whole, but gcsfs also commits one after an error
        content = b"".join(pieces)
        path.write_bytes(content)
        digests.update(content)
        return digests
    own = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f"{path.name}.{own}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                file.write(piece)
                digests.update(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise
    return digests


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all."""
    _write(path, [json.dumps(value, indent=1).encode()])


def write_index(
    directory: epath.Path,
    *,
    identity: Mapping[str, Any],
    vocab_size: int,
    eos_id: int,
    sources: Sequence[str],
    shards: Sequence[Shard],
    layout: str = "mixed",
) -> None:
    """Writes the index, which completes a store: without it no store opens.

    `identity` is the store's origin (task, split, tokenizer_sha256, inputs).
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
        "truncated": sum(shard.truncated for shard in shards),
        # Without the checksums, of which the store has one file.
        "shards": [
            {name: value for name, value in asdict(shard).items() if name != "checksums"}
            for shard in shards
        ],
    }
    crcs = b"".join(
        bytes.fromhex(shard.checksums[name.rpartition(".")[2]])
        for shard in shards
        for name in file_sizes(vars(shard), vocab_size)
    )
    index["checksums"] = {"block": BLOCK, "sha256": _write(directory / CHECKSUMS, [crcs]).sha256}
    index["fingerprint"] = fingerprint(index)
    write_json(directory / INDEX, {**index, INDEX_DIGEST: index_digest(index)})
