"""Builds a token store with the processes of this machine."""

from collections.abc import Callable
from contextlib import suppress

from data_pipelines.build.rules import STRICT, Rules
from data_pipelines.build.store_build import Build
from data_pipelines.build.workers import results
from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import Shard
from data_pipelines.text.file_task import FileTask
from prts_jax.errors import UserError, storage_errors
from prts_jax.local_lock import local_lock
from prts_jax.paths import PathLike, is_remote
from prts_jax.progress import Progress, report_to_stderr


def cache(
    task: FileTask,
    directory: PathLike,
    report: Callable[[str], None] = report_to_stderr,
    rules: Rules = STRICT,
    workers: int = 1,
) -> TokenStore:
    """Builds a token store, continues an unfinished one, or opens a finished one.

    Finished shards of an unfinished store are kept. `report` is called with each line of progress.

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
    with storage_errors(f"cannot write the store {directory}"), local_lock(directory):
        if not report_finished(build, report):
            build.begin()
            _fill(build, report, workers)
    return TokenStore.open(directory)


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
    title, files = f"{build.task.name}/{build.task.split}", len(numbers)
    if shards:
        report(f"{title}: {len(shards)} of {files} files were done before")
    progress, to_read = Progress(title, report), sum(build.sizes[number] for number in missing)
    read = tokens = bad = 0
    for number, shard in results(_write, build, missing, min(workers, len(missing) or 1)):
        shards[number] = shard
        read, tokens = read + shard.source_bytes, tokens + shard.tokens
        bad += sum(len(lines) for lines in shard.bad.values())
        counts = [f"file {len(shards)}/{files}", f"{tokens:,} tokens"]
        counts += [f"{bad:,} bad rows left out"] if bad else []
        progress(read, to_read, *counts, f"{progress.rate(tokens):,.0f} tokens/s")
    build.finish([shards[number] for number in numbers])


def _write(build: Build, number: int) -> tuple[int, Shard]:
    """Writes one shard; runs in a worker."""
    return number, build.write(number)
