"""The packed `.bin` files of lit-gpt's and TinyLlama's data preparation as a task.

A file is `LITPKDS`, a version (uint64, 1), a dtype code (uint8), the number of tokens (uint64), all
little-endian, then the tokens. Each document begins with the begin-of-text id, which also pads the
last file. A text that crosses from one file to the next becomes two documents.
"""

import itertools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_pipelines.store.writer import Encoded
from data_pipelines.text.folders import split_files
from data_pipelines.text.inputs import unreadable
from data_pipelines.text.rows import Fault
from data_pipelines.text.tokenizer import Tokenizer, load_tokenizer
from prts_jax.errors import UserError
from prts_jax.paths import PathLike

HEADER = struct.Struct("<7sQBQ")
MAGIC, VERSION = b"LITPKDS", 1
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}  # 6 and 7 are floats


@dataclass(frozen=True)
class LitGptTask:
    """A folder of `.bin` files as `FileTask`."""

    name: str
    split: str
    files: tuple[str, ...]
    sources: tuple[str, ...]
    tokenizer: Tokenizer
    bos_id: int

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        """Yields file `index`'s documents, in order, without the padding at its end.

        Raises:
          UserError: not such a file, or a truncated one.
        """
        tokens = read_tokens(self.files[index])
        others = np.flatnonzero(tokens != self.bos_id)
        end = others[-1] + 1 if others.size else 0
        # One id at the end begins a document that the next file continues; several are padding.
        if tokens.size - end > 1:
            tokens = tokens[:end]
        begins = np.flatnonzero(tokens == self.bos_id)
        borders = np.unique(np.concatenate([[0], begins, [tokens.size]]))
        for row, (begin, end) in enumerate(itertools.pairwise(borders), 1):
            yield Encoded(tokens[begin:end], 0, row=row)


def read_tokens(path: PathLike) -> np.ndarray:
    """Returns a file's tokens, padding included, in the file's own dtype [n].

    Raises:
      UserError: not such a file, one of another version, or a truncated one.
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as file:
            header = file.read(HEADER.size)
    except OSError as error:
        raise unreadable(path, error) from error
    magic, version, code, count = HEADER.unpack(header.ljust(HEADER.size, b"\0"))
    if magic != MAGIC or version != VERSION or code not in DTYPES:
        raise UserError(
            f"not a packed file of lit-gpt: {path} begins with {header[:16]!r}; give .bin files of "
            "its prepare_*.py"
        )
    dtype = np.dtype(DTYPES[code])
    if size != HEADER.size + count * dtype.itemsize:
        raise UserError(
            f"truncated file: {path} has {size} bytes, not {HEADER.size + count * dtype.itemsize}; "
            "fetch it again"
        )
    if not count:
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, "r", offset=HEADER.size, shape=(count,)))


def open_litgpt(directory: PathLike, split: str, tokenizer: PathLike) -> LitGptTask:
    """Returns the task over a folder's `.bin` files.

    If their names name splits (`train_…`, `validation_…`), those of the wanted one are read.

    Raises:
      UserError: no `.bin` file, or a tokenizer that is unreadable or has no begin-of-text id.
    """
    every = sorted(str(path) for path in Path(directory).glob("*.bin"))
    by_split = split_files(every, directory)
    files = tuple(by_split.get(split, []) if by_split else every)
    if not files:
        raise UserError(f"no .bin file of the split {split} in {directory}: give another folder")
    loaded = load_tokenizer(tokenizer)
    if loaded.bos_id is None:
        raise UserError(f"the tokenizer {tokenizer} has no begin-of-text id: give the files' own")
    return LitGptTask("litgpt", split, files, ("litgpt",), loaded, loaded.bos_id)
