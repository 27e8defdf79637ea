"""A directory for a new checkpoint, which appears whole or not at all."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator

from etils import epath

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.lock import LOCK_FILE, object_lock, workdir_lock
from prts_jax.errors import UserError, first_line
from prts_jax.paths import as_path, is_remote
from prts_jax.sizes import format_bytes

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Codes of a full disk, quota or file; tensorstore passes on their text alone."""


def free_bytes(target: str) -> int | None:
    """Returns the free space where `target` will be; None on gs://, which does not say."""
    return None if is_remote(target) else shutil.disk_usage(existing_parent(target)).free


def existing_parent(target: str) -> str:
    """Returns the innermost directory around a local `target` that exists."""
    parent = os.path.dirname(str(as_path(target)))
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    return parent


def check_space(target: str, needed: int) -> None:
    """Refuses a disk that is too small.

    Args:
      target: where a checkpoint will be.
      needed: bytes of its values.

    Raises:
      UserError: says how much is needed and how much is free.
    """
    free = free_bytes(target)
    if free is not None and free < needed * 1.01:
        raise UserError(
            f"{target}: needs {format_bytes(needed)} and {format_bytes(free)} are free; free space "
            "or choose another disk"
        )


def refuse_existing(target: str) -> None:
    """Refuses a name that is taken.

    Raises:
      UserError: a checkpoint is there, or locally anything at all.
    """
    taken = layout.is_complete if is_remote(target) else os.path.exists
    if taken(target):
        raise UserError(f"{target}: exists already and is never overwritten; name a new directory")


@contextlib.contextmanager
def new_checkpoint(target: str) -> Iterator[str]:
    """Gives a directory to fill; it becomes `target` at the end, or goes when the block fails.

    Locally that is a rename of `.<name>.growing`, which the block holds locked. In an object store
    the marker is written last, and the lock is the object `.<name>.growing`.

    Args:
      target: absolute path or gs:// address.

    Yields:
      The directory to write into.

    Raises:
      UserError: `target` exists, is being written by another process, or cannot be written.
    """
    if is_remote(target):
        with _marked(target) as directory:
            yield directory
        return
    final = as_path(target)
    refuse_existing(target)
    temporary = final.parent / f".{final.name}.growing"
    with workdir_lock(str(temporary)):
        refuse_existing(target)
        _empty(temporary)
        try:
            with writing(target):
                yield str(temporary)
                (temporary / LOCK_FILE).unlink()
                temporary.rename(final)
        except BaseException:
            temporary.rmtree(missing_ok=True)
            raise


@contextlib.contextmanager
def writing(target: str) -> Iterator[None]:
    """Turns what a full or failing disk raises into one line.

    Args:
      target: what is being written.

    Raises:
      UserError: the block raised OSError, or ValueError, as tensorstore does.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        text = str(error)
        # tensorstore says this last, after the names of many files
        full = [os.strerror(code) for code in FULL if os.strerror(code) in text]
        reason = full[0] if full else first_line(error)
        raise UserError(
            f"{target}: could not be written ({reason}); see whether the disk is full or choose "
            "another"
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
    """Removes what a killed growth left in its directory; the lock's own file stays."""
    for path in directory.iterdir():
        if path.name != LOCK_FILE:
            path.rmtree() if path.is_dir() else path.unlink()
