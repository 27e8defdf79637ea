"""Locks that allow one writer per directory or per object name.

Object stores have no locks that end with their process: there the holder keeps rewriting an object.
"""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import tensorstore as ts

from prts_jax.checkpoint.arrays import files_below
from prts_jax.errors import LostLockError, StorageError, UserError, storage_errors
from prts_jax.local_lock import LOCK_FILE, local_lock
from prts_jax.paths import is_remote

REFRESH_SECONDS = 5.0
"""Seconds between rewrites of a lock by its holder."""

STALE_SECONDS = 20.0
"""Seconds without a rewrite after which another process takes a lock over."""

SETTLE_SECONDS = 0.5
"""Seconds after which a new lock is read back."""


@contextlib.contextmanager
def workdir_lock(directory: str) -> Iterator[Callable[[], None]]:
    """Locks a directory while the block runs; changes nothing without the lock.

    Args:
      directory: local directory, see `local_lock`; or gs:// address, see `object_lock`.

    Yields:
      A function that raises `LostLockError` if another process has taken the lock over.

    Raises:
      UserError: another process holds the lock (names it), or the directory cannot be written.
      StorageError: the disk or object store failed.
    """
    if is_remote(directory):
        with object_lock(f"{directory.rstrip('/')}/{LOCK_FILE}") as check:
            yield check
        return
    with local_lock(directory):
        yield lambda: None


@contextlib.contextmanager
def object_lock(address: str) -> Iterator[Callable[[], None]]:
    """Locks a name in an object store while the block runs.

    The lock is an object that its holder rewrites every few seconds, on the condition that no other
    process has written it. A second process watches the object by its own clock: an object that
    changes has a holder; one that does not was left by a killed process and is taken over.

    Args:
      address: gs:// address of the object.

    Yields:
      A function that raises `LostLockError` if another process has taken the lock over.

    Raises:
      UserError: another process holds the lock (names the process).
      StorageError: the object store failed.
    """
    store = ts.KvStore.open(files_below(address)).result()
    with storage_errors(f"{address}: cannot be read"):
        generation = _free_generation(address, store)
    lock = _Lock(address, store, generation)
    lock.check(UserError)
    time.sleep(SETTLE_SECONDS)  # emulators ignore the condition of a write: the last writer has it
    lock.check(UserError)
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

    def check(self, lost: type[Exception] = LostLockError) -> None:
        """Rewrites the object if this process holds the lock.

        Raises:
          lost: another process has taken the lock.
          StorageError: the object store failed.
        """
        with self._writing, storage_errors(f"{self._address}: cannot be written"):
            # Read first: emulators of object stores ignore the condition of a write.
            if self._store.read("").result().stamp.generation != self._generation:
                self._generation = b""
            if self._generation:
                written = self._store.write("", self._holder, if_equal=self._generation).result()
                self._generation = written.generation  # empty if the condition failed
        if not self._generation:
            raise lost(
                f"{self._address}: another process has taken this lock; see that only one process "
                "writes there, and start again"
            )

    def keep(self, stop: threading.Event) -> None:
        """Rewrites the object every few seconds until `stop` is set."""
        while self._generation and not stop.wait(REFRESH_SECONDS):
            # A network error may be temporary; `check` reports a lost lock to the block.
            with contextlib.suppress(Exception):
                self.check()

    def release(self) -> None:
        """Removes the object if this process holds the lock; one that stays becomes stale."""
        with contextlib.suppress(StorageError), storage_errors(self._address):
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
