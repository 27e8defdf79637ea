"""Builds a token store with the processes of this machine."""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from data_pipelines.build.progress import Progress
from data_pipelines.build.store_build import STRICT, Build, FileTask, Rules
from data_pipelines.build.workers import results
from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import Shard
from prts_jax.errors import UserError, one_line, storage_error
from prts_jax.paths import is_remote

LOCK = ".lock"


def report_to_stderr(line: str) -> None:
    """Prints a line of progress to standard error; a closed pipe does not end the build."""
    with suppress(BrokenPipeError):
        print(one_line(line), file=sys.stderr, flush=True)


def cache(
    task: FileTask,
    directory: str | os.PathLike[str],
    report: Callable[[str], None] = report_to_stderr,
    rules: Rules = STRICT,
    workers: int = 1,
) -> TokenStore:
    """Builds a token store, continues an unfinished one, or opens a finished one.

    Finished shards of an unfinished store are kept.

    Args:
      task: the task to tokenize.
      directory: the store's folder; created.
      report: called with each line of progress.
      rules: rules for bad rows and the order of documents.
      workers: number of processes.

    Returns:
      The finished store.

    Raises:
      UserError: the folder is on gs://, holds another store, or is written by another process;
        or the input is bad (with `skip_bad`: more of it than `max_bad_fraction`).
    """
    if workers < 1:
        raise UserError(f"--workers={workers}: give at least 1")
    if is_remote(directory):
        raise UserError(
            f"a store is made on a disk, not on {directory}: give a local --output and copy it "
            "with `gcloud storage cp --recursive`, or make it there with `prts data beam`"
        )
    build = Build.of(task, directory, rules)
    # A finished store may lie on a read-only disk, where nothing can be locked.
    if report_finished(build, report):
        return TokenStore.open(directory)
    with locked(directory):
        if not report_finished(build, report):
            build.begin()
            _fill(build, report, workers)
    return TokenStore.open(directory)


@contextmanager
def locked(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Creates a local folder and locks it against other processes until the end of the block.

    Raises:
      UserError: the folder is forbidden or no folder, or another process is writing it.
      StorageError: the disk is full or fails.
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
        raise storage_error(f"cannot write the store {folder}", error) from error


def report_finished(build: Build, report: Callable[[str], None]) -> bool:
    """Returns whether the store is finished, and reports it if so.

    Raises:
      UserError: the folder holds another store.
    """
    index = build.finished()
    if index is None:
        return False
    with suppress(OSError):  # leftovers of a killed build do no harm
        build.clear()
    left_out = sum(index.get("bad", {}).values())
    note = f", {left_out:,} bad rows left out" if left_out else ""
    report(f"{build.task.name}/{build.task.split}: already cached in {build.directory}{note}")
    return True


def _fill(build: Build, report: Callable[[str], None], workers: int) -> None:
    """Writes the missing shards of a store, then its index."""
    numbers = range(len(build.sizes))
    shards = {number: shard for number in numbers if (shard := build.kept(number)) is not None}
    missing = [number for number in numbers if number not in shards]
    progress = Progress(f"{build.task.name}/{build.task.split}", build.sizes, missing, report)
    for number, shard in results(_write, build, missing, min(workers, len(missing) or 1)):
        shards[number] = shard
        progress.add(shard)
    build.finish([shards[number] for number in numbers])


def _write(build: Build, number: int) -> tuple[int, Shard]:
    """Writes one shard; runs in a worker."""
    return number, build.write(number)
