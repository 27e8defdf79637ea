"""Layout of a token store on disk, and its index: tokens as flat arrays, a shard per input file.

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
from collections.abc import Mapping
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
from prts_jax.paths import PathLike, as_path

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


def read_index(directory: PathLike) -> dict[str, Any]:
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


def open_checked(directory: PathLike, index: Mapping[str, Any]) -> Files:
    """Opens a store's files, which are checked as they are read, after a check of their sizes.

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
