"""The lock of a local directory, which allows one writer."""

import contextlib
import fcntl
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from prts_jax.errors import StorageError, UserError, storage_errors
from prts_jax.paths import PathLike, as_path

LOCK_FILE = ".lock"


@contextlib.contextmanager
def local_lock(directory: PathLike) -> Iterator[None]:
    """Locks a local directory, created if missing, while the block runs.

    The lock is the file `.lock`, locked by the kernel, which releases it when the process ends: a
    killed process never blocks the next. If the block raises an error of one line and wrote no
    file, the directories created for it are removed.

    Raises:
      UserError: another process holds the lock (names it), or the directory cannot be written.
      StorageError: the disk failed.
    """
    path = Path(as_path(directory)) / LOCK_FILE
    created = [folder for folder in path.parents if not folder.exists()]
    with storage_errors(f"{directory}: cannot be written"):
        descriptor = _lock_file(path)
    try:
        with storage_errors(f"{path}: cannot be written"):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, str(os.getpid()).encode())
        yield
    except (UserError, StorageError):
        if created:
            remove_unused(path, created)
        raise
    finally:
        with contextlib.suppress(OSError):  # equal contents of a directory stay equal bytes
            os.ftruncate(descriptor, 0)
        os.close(descriptor)


def _lock_file(path: Path) -> int:
    """Opens and locks a file and returns its descriptor; creates the file and its directories.

    A process that gives up its new directory removes the file, perhaps between our steps: a lock
    counts only if its file is still the one at `path`.

    Raises:
      UserError: another process holds the lock.
      OSError: the file cannot be created.
    """
    for attempt in range(100):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except (FileExistsError, FileNotFoundError):
            # Another process created or removed a directory meanwhile, or it cannot exist at all.
            if attempt == 99:
                raise
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise UserError(
                f"{path.parent}: process {holder} is writing there; wait for it, stop it, or "
                "choose another directory"
            ) from None
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise UserError(f"{path.parent}: other processes start and end there; stop them, start again")


def remove_unused(lock: Path, directories: Sequence[Path]) -> None:
    """Removes new directories that hold no file but our lock, innermost first.

    `rmdir` refuses a directory in which another process has created a file meanwhile.
    """
    below = list(lock.parent.rglob("*"))
    if any(path != lock and not path.is_dir() for path in below):
        return
    lock.unlink(missing_ok=True)
    empty = sorted((path for path in below if path.is_dir()), reverse=True)
    with contextlib.suppress(OSError):
        for directory in (*empty, *directories):
            with contextlib.suppress(FileNotFoundError):
                directory.rmdir()
