"""TensorBoard's event file, on storage that may be full or away for a while.

TensorBoard's own writer ends its thread with the first error, and the run would then wait for it.
"""

import contextlib
from typing import Any

from prts_jax.paths import append_whole, as_path, is_remote

_SCHEME = "prts"


def summary_writer(folder: str, purge_step: int | None) -> Any:
    """Returns a writer of scalars to a folder, local or gs://.

    Args:
      folder: is created.
      purge_step: hides the events of this and later steps, written before; None: nothing.
    """
    import tensorboardX
    from tensorboardX.record_writer import register_writer_factory

    register_writer_factory(_SCHEME, _Factory())
    # A log directory with a scheme is opened by its factory alone.
    return tensorboardX.SummaryWriter(f"{_SCHEME}:{folder}", purge_step=purge_step)


class _Factory:
    """Opens event files."""

    def open(self, path: str) -> "EventFile":
        return EventFile(path.removeprefix(f"{_SCHEME}:"))

    def directory_check(self, path: str) -> None:
        folder = path.removeprefix(f"{_SCHEME}:")
        if not is_remote(folder):
            as_path(folder).mkdir(parents=True, exist_ok=True)


class EventFile:
    """A file that keeps what cannot be written, and writes it in order later.

    On gs://, which cannot append, each `flush` writes the whole file.
    """

    def __init__(self, path: str) -> None:
        self._path, self._unwritten = path, b""

    def write(self, data: bytes) -> None:
        """Takes a part of the file."""
        self._unwritten += data

    def flush(self) -> None:
        """Writes what it has taken, if that is possible."""
        with contextlib.suppress(Exception):  # of gcsfs: any kind
            if is_remote(self._path):
                as_path(self._path).write_bytes(self._unwritten)
            elif self._unwritten:
                append_whole(self._path, self._unwritten)
                self._unwritten = b""

    def close(self) -> None:
        """Flushes."""
        self.flush()
