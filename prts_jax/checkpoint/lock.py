"""One writer to a directory: a lock that dies with the process that holds it."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from prts_jax.errors import UserError
from prts_jax.paths import as_path, is_remote

LOCK_FILE = ".lock"


@contextlib.contextmanager
def workdir_lock(directory: str) -> Iterator[None]:
    """Holds a local directory against a second writer while the block runs.

    The kernel drops the lock with the process, so a killed one never blocks the next. Directories
    that were made for a block that ends in a `UserError` go again if it wrote no file. Object
    stores have no locks: on gs:// this does nothing.

    Args:
      directory: made where it does not exist; the lock is its file `.lock`.

    Raises:
      UserError: another process holds it (names its pid), or the directory cannot be written.
    """
    if is_remote(directory):
        yield
        return
    path = as_path(directory) / LOCK_FILE
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise UserError(
            f"{directory}: cannot be written ({error.strerror}); choose another directory"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            raise UserError(
                f"{directory}: process {holder} is writing there; wait for it, stop it, or choose "
                "another directory"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        yield
    except UserError:
        _remove_unused(made)
        raise
    finally:
        os.close(descriptor)


def _remove_unused(made: Sequence[os.PathLike[str]]) -> None:
    """Removes directories, innermost first, as far as they hold no file but a lock."""
    for folder in map(Path, made):
        if any(path.name != LOCK_FILE for path in folder.rglob("*") if not path.is_dir()):
            return
        shutil.rmtree(folder, ignore_errors=True)
