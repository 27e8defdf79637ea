"""Runs a task into a token store, file by file, so that it can be stopped and started again.

While a store is being made its folder holds `plan.json` (what it is made from) and, for every
finished shard, `shard-00000.json`; `index.json` takes their place at the end. Each shard depends
on its input file alone, so any number of processes makes the same bytes.
"""

import dataclasses
import fcntl
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.native import Encoded
from data_pipelines.progress import Progress
from data_pipelines.rows import Fault
from data_pipelines.store import (
    INDEX,
    TEMPORARY,
    TOKENIZER,
    Shard,
    TokenStore,
    read_index,
    write_index,
    write_json,
    write_shard,
)
from data_pipelines.tokenizer import Tokenizer
from data_pipelines.workers import results
from prts_jax.errors import UserError
from prts_jax.paths import is_remote

PLAN = "plan.json"
LOCK = ".lock"


class FileTask(Protocol):
    """A task as the cache sees it: files in, documents of token ids out.

    To be run by several processes it must be picklable.
    """

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def split(self) -> str:
        """The split of it."""

    @property
    def files(self) -> Sequence[str]:
        """Its input files, in order."""

    @property
    def sources(self) -> Sequence[str]:
        """Names of its sets; a source id is an index into them."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What its token ids mean."""

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        """Yields file `index`'s documents, and what in it is none, in order."""


@dataclass(frozen=True)
class Options:
    """How a store is made.

    Attributes:
      workers: processes.
      skip_bad: leave bad rows out and list them in the index; False ends at the first.
      max_bad_fraction: share of all rows that may be left out; above it no store is made.
      layout: of `store.LAYOUTS`.
    """

    workers: int = 1
    skip_bad: bool = False
    max_bad_fraction: float = 0.001
    layout: str = "mixed"

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise UserError(f"--workers={self.workers}: give at least 1")
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"--max_bad_fraction={self.max_bad_fraction}: give a share of 0 … 1")


def cache(
    task: FileTask,
    directory: str | os.PathLike[str],
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
    options: Options = Options(),
) -> TokenStore:
    """Makes a token store, or opens the finished one that is there.

    An unfinished one is gone on with: finished shards are kept, the rest is made.

    Args:
      task: what to tokenize.
      directory: the store's folder; created.
      report: called with each line of progress.
      options: how.

    Returns:
      The finished store.

    Raises:
      UserError: the folder is on gs://, holds a store made from something else, or is written by
        another process; or the input is bad (with `skip_bad`: more of it than `max_bad_fraction`).
    """
    if is_remote(directory):
        raise UserError(
            f"a store is made on a disk, not on {directory}: give a local --output, then copy it "
            "with `gcloud storage cp --recursive`; training reads it there"
        )
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if (folder / INDEX).exists():
                index = _check_finished(task, folder, options)
                left_out = sum(index.get("bad", {}).values())
                note = f", {left_out:,} bad rows left out" if left_out else ""
                report(f"{task.name}/{task.split}: already cached in {folder}{note}")
            else:
                _fill(task, folder, report, options)
    except OSError as error:
        raise UserError(
            f"cannot write the store {folder}: {error}; mend it, start again"
        ) from error
    return TokenStore.open(directory)


def _identity(task: FileTask, options: Options) -> dict[str, Any]:
    """What must agree for two runs to be making the same store."""
    return {
        "task": task.name,
        "split": task.split,
        "tokenizer_sha256": task.tokenizer.sha256,
        "sources": list(task.sources),
        "inputs": _relative(task.files),
        "layout": options.layout,
    }


def _relative(files: Sequence[str]) -> list[str]:
    """File names below their common folder, so that the input may be moved as a whole."""
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(file)) for file in files])
    return [os.path.relpath(file, folder) for file in files]


def _refuse_difference(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    different = [key for key in wanted if found.get(key) != wanted[key]]
    if different:
        raise UserError(
            f"another store is in the way: {folder} differs in {', '.join(different)}; "
            "give another --output or delete it"
        )


def _check_finished(task: FileTask, folder: Path, options: Options) -> dict[str, Any]:
    index = {"layout": "mixed", **read_index(folder)}  # the first stores had no other
    found = {**index, "input sizes": [shard["source_bytes"] for shard in index["shards"]]}
    sizes = [os.path.getsize(file) for file in task.files]
    _refuse_difference(folder, found, {**_identity(task, options), "input sizes": sizes})
    return index


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds the folder against a second writer; the lock dies with the process."""
    with open(folder / LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is writing {folder}: wait for it or stop it"
            ) from error
        yield


def _fill(task: FileTask, folder: Path, report: Callable[[str], None], options: Options) -> None:
    """Makes what is missing of a store, its index last."""
    plan, identity = folder / PLAN, _identity(task, options)
    if plan.exists():
        _refuse_difference(folder, {"layout": "mixed", **json.loads(plan.read_bytes())}, identity)
    else:
        write_json(plan, identity)
    for leftover in folder.glob(f"*{TEMPORARY}"):
        leftover.unlink()
    (folder / TOKENIZER).write_bytes(task.tokenizer.model)

    sizes = [os.path.getsize(file) for file in task.files]
    shards = {
        index: shard
        for index, size in enumerate(sizes)
        if (shard := _kept(folder, index, size, options)) is not None
    }
    missing = [index for index in range(len(sizes)) if index not in shards]
    progress = Progress(f"{task.name}/{task.split}", sizes, missing, report)
    work = functools.partial(
        _make_shard, folder=folder, names=identity["inputs"], sizes=sizes, options=options
    )
    for index, shard in results(work, task, missing, min(options.workers, len(missing) or 1)):
        shards[index] = shard
        progress.made(shard)
    _check_fraction(list(shards.values()), folder, options)
    write_index(
        folder,
        identity=identity,
        vocab_size=task.tokenizer.vocab_size,
        eos_id=task.tokenizer.eos_id,
        sources=task.sources,
        shards=[shards[index] for index in range(len(sizes))],
        layout=options.layout,
    )
    for file in (plan, *(_record(folder, index) for index in shards)):
        file.unlink()


def _record(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.json"


def _kept(folder: Path, index: int, source_bytes: int, options: Options) -> Shard | None:
    """The entry of a shard that was made before, from the same file and as strictly."""
    record = _record(folder, index)
    if not record.exists():
        return None
    shard = Shard.from_json(json.loads(record.read_bytes()))
    strict_enough = options.skip_bad or not shard.bad
    return shard if shard.source_bytes == source_bytes and strict_enough else None


def _make_shard(
    task: FileTask,
    index: int,
    *,
    folder: Path,
    names: Sequence[str],
    sizes: Sequence[int],
    options: Options,
) -> tuple[int, Shard]:
    """Makes one shard from one file; runs in a worker."""
    rows = 0
    text_bytes: list[int] | None = [0] * len(task.sources)
    bad: dict[str, list[int]] = {}

    def good() -> Iterator[tuple[np.ndarray, int]]:
        nonlocal rows, text_bytes
        for row in task.documents(index):
            rows += 1
            if isinstance(row, Fault):
                if not options.skip_bad:
                    raise row.error(task.files[index])
                bad.setdefault(row.kind, []).append(row.line)
                continue
            if row.text_bytes is None:
                text_bytes = None
            elif text_bytes is not None:
                text_bytes[row.source] += row.text_bytes
            yield row.tokens, row.source

    record = _record(folder, index)
    shard = write_shard(
        folder,
        record.stem,
        names[index],
        sizes[index],
        good(),
        task.tokenizer.vocab_size,
        len(task.sources),
        by_set=options.layout == "by_set",
    )
    shard = dataclasses.replace(
        shard, rows=rows, bytes_per_source=tuple(text_bytes or ()), bad=dict(sorted(bad.items()))
    )
    write_json(record, vars(shard))
    return index, shard


def _check_fraction(shards: Sequence[Shard], folder: Path, options: Options) -> None:
    rows = sum(shard.rows for shard in shards)
    bad = [(shard, kind, lines[0]) for shard in shards for kind, lines in shard.bad.items()]
    count = sum(len(lines) for shard in shards for lines in shard.bad.values())
    if count > options.max_bad_fraction * rows:
        shard, kind, line = bad[0]
        raise UserError(
            f"too much bad input: {count:,} of {rows:,} rows, more than --max_bad_fraction="
            f"{options.max_bad_fraction:g}; the first is {kind} at {shard.source_file}, line "
            f"{line}, all are listed in {folder}/shard-*.json; mend them, or start again with a "
            "larger fraction: what is made is kept"
        )
