"""One writer to a directory or to a name in an object store.

A local lock dies with the process that holds it. Object stores have no such locks: there the holder
keeps rewriting an object.
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
"""How often a holder rewrites its lock."""

STALE_SECONDS = 20.0
"""How long a lock that nobody rewrites is watched before it is taken over."""


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


@contextlib.contextmanager
def object_lock(address: str) -> Iterator[Callable[[], None]]:
    """Holds a name against a second writer while the block runs.

    The lock is an object that its holder rewrites every few seconds, each time on the condition
    that it still is the one that it wrote. Who finds a lock watches it, by his own clock: one that
    changes has a holder, one that stays was left by a killed process and is taken over.

    Args:
      address: gs:// address of the object.

    Yields:
      A function that raises a `UserError` if another process has taken the lock over since.

    Raises:
      UserError: another process holds it (names it).
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
    """A lock's object, and the generation of it that this process wrote."""

    def __init__(self, address: str, store: ts.KvStore, generation: bytes) -> None:
        self._address, self._store, self._generation = address, store, generation
        self._holder = f"process {os.getpid()} on {socket.gethostname()}".encode()
        self._writing = threading.Lock()

    def check(self) -> None:
        """Rewrites the object if it is this process's.

        Raises:
          UserError: it is not.
        """
        with self._writing:
            # Read first: emulators of object stores take conditional writes for plain ones.
            if self._store.read("").result().stamp.generation != self._generation:
                self._generation = b""
            if self._generation:
                written = self._store.write("", self._holder, if_equal=self._generation).result()
                self._generation = written.generation  # empty where the condition did not hold
        if not self._generation:
            raise UserError(
                f"{self._address}: another process has taken this lock; see that only one grows "
                "into that directory, and start again"
            )

    def keep(self, stop: threading.Event) -> None:
        """Rewrites the object every few seconds until told to stop."""
        while self._generation and not stop.wait(REFRESH_SECONDS):
            # A network that fails may work the next time; who lost the lock is told by `check`.
            with contextlib.suppress(Exception):
                self.check()

    def release(self) -> None:
        """Removes the object if it is this process's."""
        if self._generation:
            self._store.write("", None, if_equal=self._generation).result()


def _free_generation(address: str, store: ts.KvStore) -> bytes:
    """Returns the generation of no lock, or of one whose holder is gone."""
    found = store.read("").result()
    deadline = time.monotonic() + STALE_SECONDS
    while found.state == "value" and time.monotonic() < deadline:
        time.sleep(min(1.0, STALE_SECONDS / 4))
        now = store.read("").result()
        if now.state == "value" and now.stamp.generation != found.stamp.generation:
            holder = now.value.decode(errors="replace")
            raise UserError(
                f"{address}: {holder} is writing there; wait for it, stop it, or choose another "
                "directory"
            )
        found = now
    generation: bytes = found.stamp.generation
    return generation
