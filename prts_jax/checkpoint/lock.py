"""Locks that allow one writer per directory or per object name.

The kernel releases a local lock when its process ends. Object stores have no such locks: there the
holder keeps rewriting an object.
"""

import contextlib
import fcntl
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tensorstore as ts

from prts_jax.checkpoint.arrays import files_below
from prts_jax.errors import UserError
from prts_jax.paths import as_path, is_remote

LOCK_FILE = ".lock"

REFRESH_SECONDS = 5.0
"""Seconds between rewrites of a lock by its holder."""

STALE_SECONDS = 20.0
"""Seconds without a rewrite after which another process takes a lock over."""


@contextlib.contextmanager
def workdir_lock(directory: str) -> Iterator[None]:
    """Locks a local directory while the block runs.

    The kernel releases the lock when the process ends, so a killed process never blocks the next.
    If the block raises `UserError` and wrote no file, the directories created for it are removed.
    On gs:// this does nothing.

    Args:
      directory: created if missing; the lock is its file `.lock`.

    Raises:
      UserError: another process holds it (names its pid), or the directory cannot be written.
    """
    if is_remote(directory):
        yield
        return
    path = as_path(directory) / LOCK_FILE
    created = [folder for folder in path.parents if not folder.exists()]
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
        _remove_unused(created)
        raise
    finally:
        os.close(descriptor)


def _remove_unused(directories: Sequence[os.PathLike[str]]) -> None:
    """Removes directories, innermost first, until one holds a file other than a lock."""
    for folder in map(Path, directories):
        if any(path.name != LOCK_FILE for path in folder.rglob("*") if not path.is_dir()):
            return
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def object_lock(address: str) -> Iterator[Callable[[], None]]:
    """Locks a name in an object store while the block runs.

    The lock is an object that its holder rewrites every few seconds, on the condition that no other
    process has written it. A second process watches the object by its own clock: an object that
    changes has a holder; one that does not was left by a killed process and is taken over.

    Args:
      address: gs:// address of the object.

    Yields:
      A function that raises `UserError` if another process has taken the lock over.

    Raises:
      UserError: another process holds the lock (names the process).
    """
    store = ts.KvStore.open(files_below(address)).result()
    lock = _Lock(address, store, _free_generation(address, store))
    lock.check()
    stop = threading.Event()
    refreshing = threading.Thread(target=lock.keep, args=(stop,), daemon=True)
    refreshing.start()
    try:
        yield lock.check
    finally:
        stop.set()
        refreshing.join()
        lock.release()


class _Lock:
    """A lock object and the generation that this process wrote."""

    def __init__(self, address: str, store: ts.KvStore, generation: bytes) -> None:
        self._address, self._store, self._generation = address, store, generation
        self._holder = f"process {os.getpid()} on {socket.gethostname()}".encode()
        self._writing = threading.Lock()

    def check(self) -> None:
        """Rewrites the object if this process holds the lock.

        Raises:
          UserError: another process has taken the lock.
        """
        with self._writing:
            # Read first: emulators of object stores ignore the condition of a write.
            if self._store.read("").result().stamp.generation != self._generation:
                self._generation = b""
            if self._generation:
                written = self._store.write("", self._holder, if_equal=self._generation).result()
                self._generation = written.generation  # empty if the condition failed
        if not self._generation:
            raise UserError(
                f"{self._address}: another process has taken this lock; see that only one grows "
                "into that directory, and start again"
            )

    def keep(self, stop: threading.Event) -> None:
        """Rewrites the object every few seconds until `stop` is set."""
        while self._generation and not stop.wait(REFRESH_SECONDS):
            # A network error may be temporary; `check` reports a lost lock to the block.
            with contextlib.suppress(Exception):
                self.check()

    def release(self) -> None:
        """Removes the object if this process holds the lock."""
        if self._generation:
            self._store.write("", None, if_equal=self._generation).result()


def _free_generation(address: str, store: ts.KvStore) -> bytes:
    """Returns the generation of a missing lock, or of one whose holder has died."""
    lock = store.read("").result()
    deadline = time.monotonic() + STALE_SECONDS
    while lock.state == "value" and time.monotonic() < deadline:
        time.sleep(min(1.0, STALE_SECONDS / 4))
        now = store.read("").result()
        if now.state == "value" and now.stamp.generation != lock.stamp.generation:
            holder = now.value.decode(errors="replace")
            raise UserError(
                f"{address}: {holder} is writing there; wait for it, stop it, or choose another "
                "directory"
            )
        lock = now
    generation: bytes = lock.stamp.generation
    return generation
