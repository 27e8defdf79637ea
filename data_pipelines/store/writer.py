"""Writes token stores (`store.py`): shards, and the index that completes one."""

import hashlib
import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.store.store import (
    ANSWER_DTYPE,
    END_DTYPE,
    FORMAT,
    INDEX,
    SOURCE_DTYPE,
    fingerprint,
    token_dtype,
)
from prts_jax.errors import UserError
from prts_jax.paths import is_remote

TEMPORARY = ".tmp"

Document = tuple[np.ndarray, int] | tuple[np.ndarray, int, np.ndarray]
"""Token ids, source id and, of instructions, which tokens are answers."""


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
      truncated: documents whose end was cut off.
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

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> "Shard":
        """Returns the shard whose `asdict` is `entry`, as JSON gave it back."""
        lists = {name: tuple(value) for name, value in entry.items() if isinstance(value, list)}
        return cls(**{**entry, **lists})


def write_shard(
    directory: epath.Path,
    name: str,
    source_file: str,
    source_bytes: int,
    documents: Iterable[Document],
    vocab_size: int,
    sources: int,
    by_set: bool = False,
) -> Shard:
    """Writes one shard's files, each whole or not at all.

    Args:
      directory: the store's folder.
      name: the shard's name, `shard-00000`.
      source_file: recorded in the entry, as is its size `source_bytes`.
      source_bytes: see there.
      documents: (token ids [n], any integer dtype; source id) of each document, in order; and
        which tokens are answers, uint8 [n], of every document or of none.
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
    answers: list[np.ndarray] = []
    total = 0

    def encoded() -> Iterator[bytes]:
        nonlocal total
        for tokens, source, *marks in sorted(documents, key=itemgetter(1)) if by_set else documents:
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
            answers.extend(marks)
            tokens_per_source[source] += tokens.size
            documents_per_source[source] += 1
            yield tokens.astype(dtype).tobytes()

    digests = {"tokens": _write(directory / f"{name}.tokens", encoded())}
    for suffix, array in (
        ("ends", np.array(ends, END_DTYPE)),
        ("sources", np.array(source_ids, SOURCE_DTYPE)),
    ):
        digests[suffix] = _write(directory / f"{name}.{suffix}", [array.tobytes()])
    if answers:
        pieces = (marks.astype(ANSWER_DTYPE).tobytes() for marks in answers)
        digests["answers"] = _write(directory / f"{name}.answers", pieces)
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


def _write(path: epath.Path, pieces: Iterable[bytes]) -> str:
    """Writes a file whole or not at all, and returns its sha256."""
    if is_remote(path):  # an object appears whole, but gcsfs ends one at an error too
        content = b"".join(pieces)
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    own = f"{os.getpid()}-{threading.get_ident()}"
    temporary = path.with_name(f"{path.name}.{own}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                file.write(piece)
                digest.update(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # a full disk needs the room
        raise
    return digest.hexdigest()


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
        "truncated": sum(shard.truncated for shard in shards),
        "shards": [asdict(shard) for shard in shards],
    }
    write_json(directory / INDEX, {**index, "fingerprint": fingerprint(index)})
