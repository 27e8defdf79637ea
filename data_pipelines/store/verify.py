"""The check of a finished store against its index: every digest, count and id."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from data_pipelines.build.workers import results
from data_pipelines.store.checksums import CHECKSUMS
from data_pipelines.store.files import Files, open_files
from data_pipelines.store.index import (
    ANSWER_DTYPE,
    END_DTYPE,
    ROW_DTYPE,
    SOURCE_DTYPE,
    TOKENIZER,
    TOKENIZER_FILES,
    file_sizes,
    read_index,
    size_fault,
    token_dtype,
)
from prts_jax.errors import UserError
from prts_jax.paths import PathLike

READ_ITEMS = 1 << 24  # at once


def verify(
    directory: PathLike, workers: int = 1, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Reads a whole store, compares it with its index, and returns the index.

    `report` is called with each fault.

    Raises:
      UserError: no finished store, or a damaged one; it names the number of faults and the first.
    """
    index = read_index(directory)
    sizes = open_files(directory).sizes()
    problems = list(_file_problems(directory, index, sizes))
    work = functools.partial(_check_shard, directory=os.fspath(directory), sizes=sizes)
    shards = range(len(index["shards"]))
    by_shard = dict(results(work, index, shards, min(workers, max(len(shards), 1))))
    problems += [problem for number in shards for problem in by_shard[number]]
    for problem in problems:
        report(problem)
    if problems:
        count = "1 fault" if len(problems) == 1 else f"{len(problems)} faults"
        raise UserError(
            f"damaged token store: {directory} has {count}, the first: "
            f"{problems[0]}; copy those files again, or delete the store and cache again"
        )
    return index


def _file_problems(
    directory: PathLike, index: Mapping[str, Any], sizes: Mapping[str, int]
) -> Iterator[str]:
    """Compares the tokenizer and the checksums, made with the shards' digests, with theirs."""
    tokenizer = next((name for name in TOKENIZER_FILES if name in sizes), TOKENIZER)
    files = {tokenizer: (index["tokenizer_sha256"], "is not the one that made the tokens")}
    if "checksums" in index:  # stores of older versions have none
        files[CHECKSUMS] = (index["checksums"]["sha256"], "does not match its digest")
    for name, (digest, problem) in files.items():
        if name not in sizes:
            yield f"{name} is missing"
        elif _digest(open_files(directory).read(name, np.dtype("u1"), 0, sizes[name])) != digest:
            yield f"{name} {problem}"


def _digest(content: np.ndarray) -> str:
    return hashlib.sha256(content.tobytes()).hexdigest()


def _check_shard(
    index: Mapping[str, Any], number: int, *, directory: str, sizes: Mapping[str, int]
) -> tuple[int, list[str]]:
    """Returns the faults of one shard; runs in a worker."""
    shard, files = index["shards"][number], open_files(directory)
    expected = file_sizes(shard, index["vocab_size"])
    faults = [
        size_fault(name, sizes, size) for name, size in expected.items() if sizes.get(name) != size
    ]
    return number, faults or list(_content_problems(shard, files, index))


def _content_problems(
    shard: Mapping[str, Any], files: Files, index: Mapping[str, Any]
) -> Iterator[str]:
    name, documents = shard["name"], shard["documents"]
    dtype = token_dtype(index["vocab_size"])
    digest, highest = hashlib.sha256(), -1
    for start in range(0, shard["tokens"], READ_ITEMS):
        stop = min(start + READ_ITEMS, shard["tokens"])
        tokens = files.read(f"{name}.tokens", dtype, start, stop)
        digest.update(tokens.tobytes())
        highest = max(highest, int(tokens.max()))
    ends = files.read(f"{name}.ends", END_DTYPE, 0, documents)
    sources = files.read(f"{name}.sources", SOURCE_DTYPE, 0, documents)
    digests = {"tokens": digest.hexdigest(), "ends": _digest(ends), "sources": _digest(sources)}
    if "rows" in shard["sha256"]:
        digests["rows"] = _digest(files.read(f"{name}.rows", ROW_DTYPE, 0, documents))
    if "answers" in shard["sha256"]:
        answers = files.read(f"{name}.answers", ANSWER_DTYPE, 0, shard["tokens"])
        digests["answers"] = _digest(answers)
    for suffix, actual in digests.items():
        if shard["sha256"][suffix] != actual:
            yield f"{name}.{suffix} does not match its digest"
    if highest >= index["vocab_size"]:
        yield f"{name}.tokens holds id {highest} of a vocabulary of {index['vocab_size']}"
    lengths = np.diff(ends.astype(np.int64), prepend=0)
    if (lengths < 0).any() or (int(ends[-1]) if documents else 0) != shard["tokens"]:
        yield f"{name}.ends does not add up to {shard['tokens']} tokens"
        return
    if index.get("layout") == "by_set" and (np.diff(sources.astype(np.int64)) < 0).any():
        yield f"{name}.sources is not in the order of the sets"
    if "packing" in index:
        row = index["packing"]["length"] + 1
        if not np.isin(np.arange(row, shard["tokens"] + 1, row), ends).all():
            yield f"{name}.ends has documents that cross the border of two rows of {row}"
    known = len(index["sources"])
    per_source = np.zeros(max(known, int(sources.max(initial=0)) + 1), np.int64)
    np.add.at(per_source, sources, lengths)
    if per_source.tolist() != list(shard["tokens_per_source"]):
        yield f"{name}.sources gives {per_source.tolist()} tokens per source"
    counts = np.bincount(sources, minlength=known).tolist()
    if shard.get("documents_per_source") and counts != list(shard["documents_per_source"]):
        yield f"{name}.sources gives {counts} documents per source"
