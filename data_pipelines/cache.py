"""Runs a task into a token store, file by file, so that it can be stopped and started again.

While a store is being made its folder holds `plan.json` (what it is made from) and, for every
finished shard, `shard-00000.json`; `index.json` takes their place at the end.
"""

import fcntl
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data_pipelines.store import (
    INDEX,
    TOKENIZER,
    Shard,
    TokenStore,
    read_index,
    write_index,
    write_json,
    write_shard,
)
from data_pipelines.tokenizer import Tokenizer
from prts_jax.errors import UserError

PLAN = "plan.json"
LOCK = ".lock"


class FileTask(Protocol):
    """A task as the cache sees it: files in, documents of token ids out."""

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

    def documents(self, index: int) -> Iterator[tuple[np.ndarray, int]]:
        """Yields (token ids [n], source id) of file `index`'s documents, in order."""


def cache(
    task: FileTask,
    directory: str | os.PathLike[str],
    report: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),
) -> TokenStore:
    """Makes a token store, or opens the finished one that is there.

    An unfinished one is gone on with: finished shards are kept, the rest is made.

    Args:
      task: what to tokenize.
      directory: the store's folder; created.
      report: called with each line of progress.

    Returns:
      The finished store.

    Raises:
      UserError: the folder holds a store made from something else, another process is writing it,
        or the input is bad.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if (folder / INDEX).exists():
                _check_finished(task, folder)
                report(f"{task.name}/{task.split}: already cached in {folder}")
            else:
                _fill(task, folder, report)
    except OSError as error:
        raise UserError(
            f"cannot write the store {folder}: {error}; mend it, start again"
        ) from error
    return TokenStore.open(directory)


def _identity(task: FileTask) -> dict[str, Any]:
    """What must agree for two runs to be making the same store."""
    return {
        "task": task.name,
        "split": task.split,
        "tokenizer_sha256": task.tokenizer.sha256,
        "sources": list(task.sources),
        "inputs": _relative(task.files),
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


def _check_finished(task: FileTask, folder: Path) -> None:
    index = read_index(folder)
    found = {**index, "input sizes": [shard["source_bytes"] for shard in index["shards"]]}
    sizes = [os.path.getsize(file) for file in task.files]
    _refuse_difference(folder, found, {**_identity(task), "input sizes": sizes})


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


def _fill(task: FileTask, folder: Path, report: Callable[[str], None]) -> None:
    """Makes what is missing of a store, its index last."""
    plan, identity = folder / PLAN, _identity(task)
    if plan.exists():
        _refuse_difference(folder, json.loads(plan.read_bytes()), identity)
    else:
        write_json(plan, identity)
    (folder / TOKENIZER).write_bytes(task.tokenizer.model)

    progress = _Progress(task, report)
    shards = [
        _shard(task, folder, index, name, progress) for index, name in enumerate(identity["inputs"])
    ]
    write_index(
        folder,
        identity=identity,
        vocab_size=task.tokenizer.vocab_size,
        eos_id=task.tokenizer.eos_id,
        sources=task.sources,
        shards=shards,
    )
    for file in (plan, *(_record(folder, index) for index in range(len(shards)))):
        file.unlink()


def _record(folder: Path, index: int) -> Path:
    return folder / f"shard-{index:05d}.json"


def _shard(
    task: FileTask, folder: Path, index: int, source_file: str, progress: "_Progress"
) -> Shard:
    """Returns a shard's entry, making the shard unless it was made from the same file before."""
    record = _record(folder, index)
    source_bytes = os.path.getsize(task.files[index])
    if record.exists():
        entry = json.loads(record.read_bytes())
        if entry["source_bytes"] == source_bytes:
            progress.kept(index)
            return Shard(**{**entry, "tokens_per_source": tuple(entry["tokens_per_source"])})
    shard = write_shard(
        folder,
        record.stem,
        source_file,
        source_bytes,
        task.documents(index),
        task.tokenizer.vocab_size,
        len(task.sources),
    )
    write_json(record, vars(shard))
    progress.made(index, shard)
    return shard


class _Progress:
    """A line after each file: rates of this run, time left by the bytes of the files to come."""

    def __init__(self, task: FileTask, report: Callable[[str], None]):
        self._title = f"{task.name}/{task.split}"
        self._sizes = [os.path.getsize(file) for file in task.files]
        self._report = report
        self._begin = time.monotonic()
        self._bytes = 0
        self._tokens = 0
        self._kept = 0

    def kept(self, index: int) -> None:
        self._kept += self._sizes[index]
        self._report(f"{self._title}: file {index + 1}/{len(self._sizes)} was done before")

    def made(self, index: int, shard: Shard) -> None:
        self._bytes += self._sizes[index]
        self._tokens += shard.tokens
        seconds = max(time.monotonic() - self._begin, 1e-9)
        rest = sum(self._sizes) - self._kept - self._bytes
        left = timedelta(seconds=round(rest * seconds / max(self._bytes, 1)))
        self._report(
            f"{self._title}: file {index + 1}/{len(self._sizes)}, {self._tokens:,} tokens, "
            f"{self._bytes / seconds / 1e6:.2f} MB/s compressed, "
            f"{self._tokens / seconds:,.0f} tokens/s, {left} left"
        )
