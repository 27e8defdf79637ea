"""A save in the background: how it ends, on this process and on the others.

Orbax meets the other processes at barriers. A process whose part has failed never comes to them, so
that the others would wait until the time limit: the barrier here also ends with the first error.
"""

import contextlib
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.items import checkpointer, saving
from prts_jax.checkpoint.removal import delete
from prts_jax.distributed import coordination_client
from prts_jax.errors import StorageError, first_line
from prts_jax.paths import as_path, is_remote

_KEYS = "prts_jax/save"
"""Folder of keys in JAX's coordination service."""

POLL_SECONDS = 0.1


class _FailedElsewhereError(StorageError):
    """The failed part of another process."""


class BackgroundSave:
    """The one save that runs in the background; every process calls the same methods."""

    def __init__(self) -> None:
        self._client = coordination_client()
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._end: Future[None] | None = None
        self._open()

    def _open(self) -> None:
        self._checkpointer = checkpointer(None if self._client is None else self._meet)

    def start(self, path: str, arguments: Any) -> None:
        """Starts a save; its errors come from `wait`, also those of the first moments."""
        what = f"checkpoint {path}: could not be written"
        self._end = Future()
        try:
            with self._telling(what):
                self._checkpointer.save(path, args=arguments)
        except Exception as error:
            self._end.set_exception(error)
            return
        self._end = self._threads.submit(self._finish, what)

    def _finish(self, what: str) -> None:
        with self._telling(what):
            self._checkpointer.wait_until_finished()

    @contextlib.contextmanager
    def _telling(self, what: str) -> Any:
        """Converts storage errors to one line; tells the other processes of every error."""
        try:
            with saving(what):
                yield
        except _FailedElsewhereError:
            raise
        except Exception as error:
            if self._client is not None:
                text = f"process {jax.process_index()}: {first_line(error, 800)}"
                key = f"{_KEYS}/failed/{jax.process_index()}"
                self._client.key_value_set(key, text, allow_overwrite=True)
            raise

    def failure(self) -> Exception | None:
        """Returns the error of the save if this process knows of one; does not wait."""
        ended = self._end is not None and self._end.done()
        error = self._end.exception() if ended and self._end is not None else None
        return error if isinstance(error, Exception) else None

    def has_ended(self) -> bool:
        """Returns whether this process's part has ended, or none was started."""
        return self._end is None or self._end.done()

    def wait(self) -> None:
        """Waits for this process's part of the save.

        Raises:
          StorageError: it has failed. The failure of another process is that one's to raise.
        """
        end, self._end = self._end, None
        if end is None:
            return
        try:
            end.result()
        except Exception as error:
            with contextlib.suppress(Exception):
                self._checkpointer.close()
            self._open()  # Orbax's state after an error is its own
            if not isinstance(error, _FailedElsewhereError):
                raise

    def forget(self) -> None:
        """Removes what the processes have told one another, once the save has ended on all."""
        if self._client is not None and jax.process_index() == 0:
            self._client.key_value_delete(f"{_KEYS}/")

    def close(self) -> None:
        """Waits, and stops the threads."""
        with contextlib.closing(self._checkpointer):
            self.wait()
        self._threads.shutdown()

    def _meet(self, *, key: str, timeout_ms: int) -> None:
        """Waits until all processes have come here; Orbax's barrier."""
        folder = f"{_KEYS}/met/{key}"
        self._client.key_value_set(f"{folder}/{jax.process_index()}", "", allow_overwrite=True)
        until = time.monotonic() + timeout_ms / 1000
        while True:
            for _, text in self._client.key_value_dir_get(f"{_KEYS}/failed"):
                raise _FailedElsewhereError(text)
            here = {path.rpartition("/")[2] for path, _ in self._client.key_value_dir_get(folder)}
            if len(here) == jax.process_count():
                return
            if time.monotonic() > until:
                late = [str(n) for n in range(jax.process_count()) if str(n) not in here]
                raise StorageError(
                    f"{key}: process {', '.join(late)} has not written its part of the checkpoint "
                    f"for {timeout_ms / 1000:.0f} s; see whether its storage works"
                )
            time.sleep(POLL_SECONDS)


def try_to_create(path: str) -> None:
    """Creates and removes the directory that Orbax makes for a save; on gs:// marks the save.

    Where Orbax cannot make it in the first process, the other processes would wait for 300 s.
    """
    if is_remote(path):
        as_path(f"{path}{layout.SAVING}").write_text("a save is running or was interrupted")
        return
    probe = as_path(f"{path}.orbax-checkpoint-tmp")
    try:
        (probe / layout.PARAMS / "d").mkdir(parents=True)
        (probe / layout.PARAMS / "d" / "probe").write_bytes(b"probe")
    finally:
        delete(probe)
