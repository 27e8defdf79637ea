"""Text in a file or folder, tokenized in memory, with the interface of a token store."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prts_jax.errors import UserError, storage_errors
from prts_jax.paths import as_path, is_remote

ENDINGS = (".txt", ".md")


@dataclass(frozen=True)
class TextStore:
    """The part of a token store that `data_pipelines.batches.loader.EvalBatches` reads.

    Each file is a document that ends in the end token; each folder directly below the root is a
    source (files in the root are the source "text").

    Attributes:
      text_digest: sha256 of the text and its sources, independent of the tokenizer.
      fingerprint: sha256 of the tokens and their sources.
      packed: 0, since the store is not packed.
    """

    directory: str
    sources: tuple[str, ...]
    text_bytes: tuple[int, ...]
    text_digest: str
    fingerprint: str
    tokens: int
    eos_id: int
    _tokens: np.ndarray = field(repr=False)
    _sources: np.ndarray = field(repr=False)
    _offsets: np.ndarray = field(repr=False)
    packed: int = 0

    @property
    def tokens_per_source(self) -> np.ndarray:
        """Number of tokens of each source: int64 [sources]."""
        return np.bincount(self._sources, minlength=len(self.sources))

    def read(self, start: int, count: int) -> np.ndarray:
        """Returns tokens [start, start + count): int32."""
        return self._tokens[start : start + count]

    def source_ids(self, start: int, count: int) -> np.ndarray:
        """Returns the source of each of these tokens: int32."""
        return self._sources[start : start + count]

    def document_offsets(self, start: int, count: int) -> np.ndarray:
        """Returns the position of each of these tokens in its document: int32."""
        return self._offsets[start : start + count]


def open_text(path: str, encode: Callable[[str], list[int]], eos: int | None) -> TextStore:
    """Tokenizes a file, or a folder with .txt and .md files at any depth; `eos` None ends none.

    Raises:
      UserError: there are no such files, or one cannot be read or is not UTF-8.
      StorageError: the disk failed.
    """
    if is_remote(path):
        raise UserError(
            f"{path}: text is read from local disk; copy it there, or use a token store"
        )
    root = Path(as_path(path))
    below = (p for p in root.rglob("*") if p.is_file() and p.suffix in ENDINGS)
    files = [root] if root.is_file() else sorted(below)
    if not files:
        raise UserError(f"{path}: no text there; name a file, or a folder with .txt or .md files")
    names = [_source(root, file) for file in files]
    sources = tuple(sorted(set(names)))
    sizes = [0] * len(sources)
    parts: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    digest = hashlib.sha256()
    for file, name in zip(files, names, strict=True):
        with storage_errors(f"{file}: cannot be read"):
            content = file.read_bytes()
        try:
            ids = encode(content.decode())
        except UnicodeDecodeError as error:
            raise UserError(f"{file}: is not UTF-8 ({error}); convert or remove it") from error
        parts.append(np.asarray(ids if eos is None else [*ids, eos], np.int32))
        owners.append(np.full(len(parts[-1]), sources.index(name), np.int32))
        sizes[sources.index(name)] += len(content)
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    tokens, of = np.concatenate(parts), np.concatenate(owners)
    offsets = np.concatenate([np.arange(len(part), dtype=np.int32) for part in parts])
    return TextStore(
        directory=str(root),
        sources=sources,
        text_bytes=tuple(sizes),
        text_digest=digest.hexdigest(),
        fingerprint=hashlib.sha256(tokens.tobytes() + of.tobytes()).hexdigest(),
        tokens=len(tokens),
        eos_id=-1 if eos is None else eos,
        _tokens=tokens,
        _sources=of,
        _offsets=offsets,
    )


def _source(root: Path, file: Path) -> str:
    inside = file.relative_to(root).parts if file != root else ()
    return inside[0] if len(inside) > 1 else "text"
