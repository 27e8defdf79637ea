"""Runs a task into a token store with the processes of this machine."""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data_pipelines.build.file_work import STRICT, Build, FileTask, Rules
from data_pipelines.build.progress import Progress
from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import Shard
from data_pipelines.build.workers import results
from prts_jax.errors import UserError
from prts_jax.paths import is_remote

LOCK = ".lock"


def report_to_stderr(line: str) -> None:
    """Prints a line of progress."""
    print(line, file=sys.stderr, flush=True)


def cache(
    task: FileTask,
    directory: str | os.PathLike[str],
    report: Callable[[str], None] = report_to_stderr,
    rules: Rules = STRICT,
    workers: int = 1,
) -> TokenStore:
    """Makes a token store, or opens the finished one that is there.

    An unfinished one is gone on with: finished shards are kept, the rest is made.

    Args:
      task: what to tokenize.
      directory: the store's folder; created.
      report: called with each line of progress.
      rules: what is left out, and how the documents lie.
      workers: processes.

    Returns:
      The finished store.

    Raises:
      UserError: the folder is on gs://, holds a store made from something else, or is written by
        another process; or the input is bad (with `skip_bad`: more of it than `max_bad_fraction`).
    """
    if workers < 1:
        raise UserError(f"--workers={workers}: give at least 1")
    if is_remote(directory):
        raise UserError(
            f"a store is made on a disk, not on {directory}: give a local --output and copy it "
            "with `gcloud storage cp --recursive`, or make it there with `prts data beam`"
        )
    build = Build.of(task, directory, rules)
    with writing(directory):
        if not say_if_finished(build, report):
            build.begin()
            _fill(build, report, workers)
    return TokenStore.open(directory)


@contextmanager
def writing(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Makes a local folder and holds it against a second writer; the lock dies with the process.

    Raises:
      UserError: it cannot be written, or another process is writing it.
    """
    folder = Path(directory)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / LOCK, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UserError(
                    f"another process is writing {folder}: wait for it or stop it"
                ) from error
            yield
    except OSError as error:
        raise UserError(
            f"cannot write the store {folder}: {error}; mend it, start again"
        ) from error


def say_if_finished(build: Build, report: Callable[[str], None]) -> bool:
    """Returns whether the store is already made, and reports it.

    Raises:
      UserError: another store is there.
    """
    index = build.finished()
    if index is None:
        return False
    build.clear()
    left_out = sum(index.get("bad", {}).values())
    note = f", {left_out:,} bad rows left out" if left_out else ""
    report(f"{build.task.name}/{build.task.split}: already cached in {build.directory}{note}")
    return True


def _fill(build: Build, report: Callable[[str], None], workers: int) -> None:
    """Makes what is missing of a store, its index last."""
    numbers = range(len(build.sizes))
    shards = {number: shard for number in numbers if (shard := build.kept(number)) is not None}
    missing = [number for number in numbers if number not in shards]
    progress = Progress(f"{build.task.name}/{build.task.split}", build.sizes, missing, report)
    for number, shard in results(_make, build, missing, min(workers, len(missing) or 1)):
        shards[number] = shard
        progress.made(shard)
    build.finish([shards[number] for number in numbers])


def _make(build: Build, number: int) -> tuple[int, Shard]:
    """Makes one shard; runs in a worker."""
    return number, build.make(number)
