"""Atomic creation of a checkpoint directory."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.lock import object_lock
from prts_jax.errors import StorageError, UserError, first_line, storage_errors
from prts_jax.local_lock import LOCK_FILE, local_lock, remove_unused
from prts_jax.paths import as_path, is_remote, sync, sync_all
from prts_jax.text_table import format_bytes


def free_bytes(target: str) -> int | None:
    """Returns the free bytes on the disk of `target`; None where it is no disk: gs://, /proc."""
    if is_remote(target):
        return None
    usage = shutil.disk_usage(existing_parent(target))
    return usage.free if usage.total else None


def existing_parent(target: str) -> str:
    """Returns the innermost existing parent directory of a local `target`."""
    parent = os.path.dirname(str(as_path(target)))
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    return parent


def check_space(target: str, needed: int) -> None:
    """Checks that the disk has room for a checkpoint.

    Args:
      target: path of the new checkpoint.
      needed: bytes of its values.

    Raises:
      StorageError: the disk is too full (states the needed and the free bytes).
    """
    free = free_bytes(target)
    if free is not None and free < needed * 1.01:
        raise StorageError(
            f"{target}: needs {format_bytes(needed)} and {format_bytes(free)} are free; free space "
            "or choose another disk"
        )


def refuse_existing(target: str) -> None:
    """Checks that the target does not exist, and that it does not lie inside a checkpoint.

    Raises:
      UserError: a complete checkpoint exists there; on local disk, any file or directory; or a
        folder above it is a checkpoint.
    """
    refuse_inside_checkpoint(target)
    taken = layout.is_complete if is_remote(target) else os.path.exists
    if taken(target):
        raise UserError(f"{target}: exists already and is never overwritten; name a new directory")


def refuse_inside_checkpoint(target: str) -> None:
    """Checks that no directory above the target is a checkpoint; links and `..` are followed.

    Raises:
      UserError: the target lies inside a checkpoint.
      StorageError: the object store failed.
    """
    path = as_path(target) if is_remote(target) else Path(os.path.realpath(target))
    for parent in path.parents:
        with storage_errors(f"{target}: cannot be used"):
            inside = (parent / layout.LINEAGE / layout.LINEAGE_FILE).exists()
        if inside:
            raise UserError(
                f"{target}: lies inside the checkpoint {parent}; name a directory outside it"
            )


@contextlib.contextmanager
def new_checkpoint(target: str) -> Iterator[str]:
    """Yields a directory that becomes `target` when the block ends and is removed if it fails.

    On local disk it is the locked directory `.<name>.growing`, renamed at the end. In an object
    store the lock is the object `.<name>.growing`, and the commit marker is written last.

    Args:
      target: absolute path or gs:// address.

    Yields:
      The directory to write into.

    Raises:
      UserError: `target` exists, lies inside a checkpoint, is being written by another process, or
        cannot be written.
      StorageError: the disk or object store failed.
    """
    if is_remote(target):
        with _marked(target) as directory:
            yield directory
        return
    final = as_path(target)
    refuse_existing(target)
    temporary = final.parent / f".{final.name}.growing"
    with local_lock(temporary):
        refuse_existing(target)
        try:
            with writing(target):
                _empty(temporary)
                yield str(temporary)
                sync_all(temporary)
                temporary.rename(final)
        except BaseException:
            with contextlib.suppress(OSError):
                _empty(temporary)
                remove_unused(Path(temporary / LOCK_FILE), [Path(temporary)])
            raise
        # Not before: without its lock file, the directory would be free for another process.
        (final / LOCK_FILE).unlink(missing_ok=True)
        sync(final.parent)


@contextlib.contextmanager
def writing(target: str) -> Iterator[None]:
    """Converts storage errors of the block to errors of one line.

    Args:
      target: the path being written, for the message.

    Raises:
      UserError: the path cannot be written, or tensorstore refuses a value.
      StorageError: the disk or object store failed.
    """
    try:
        with storage_errors(f"{target}: could not be written"):
            yield
    except ValueError as error:
        if not re.match(r"[A-Z_]+: ", str(error)):  # a status of tensorstore
            raise
        raise UserError(
            f"{target}: could not be written ({first_line(error)}); see whether the source is whole"
        ) from error


@contextlib.contextmanager
def _marked(target: str) -> Iterator[str]:
    final = as_path(target)
    refuse_existing(target)
    with object_lock(str(final.parent / f".{final.name}.growing")) as check_lock:
        refuse_existing(target)
        final.rmtree(missing_ok=True)
        try:
            with writing(target):
                yield target
                check_lock()
                (final / layout.COMMIT_MARKER).write_text("complete")
        except BaseException:
            final.rmtree(missing_ok=True)
            raise


def _empty(directory: epath.Path) -> None:
    """Removes all files of a killed process from a directory, except the lock file."""
    for path in directory.iterdir():
        if path.name != LOCK_FILE:
            path.rmtree() if path.is_dir() else path.unlink()
