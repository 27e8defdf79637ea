"""Several processes of one job: an error on one is an error on all.

A process that dies raises nothing; `prts_jax.peers` then ends the others.
"""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from prts_jax.errors import LostLockError, StorageError, UserError, first_line, storage_failure

_MESSAGE_BYTES = 1024

_RETRIED, _LOST_LOCK = "\x01", "\x02"
"""First characters of the messages of storage errors."""


class StoppedElsewhereError(UserError):
    """The error of another process, which ends this one as well."""


@contextlib.contextmanager
def all_processes() -> Iterator[None]:
    """Runs a short block on all processes; an error on one of them is an error on all.

    A process alone just runs the block.

    Raises:
      StoppedElsewhereError: the block failed on another process (names the first). A process whose
        own block failed raises its own error unchanged.
      StorageError: the block failed so on another process.
    """
    if jax.process_count() == 1:
        yield
        return
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
    texts = gather_texts("" if error is None else _message(error))
    if error is not None:
        raise error
    for process, text in enumerate(texts):
        if text:
            kinds = {_RETRIED: StorageError, _LOST_LOCK: LostLockError}
            kind = kinds.get(text[0], StoppedElsewhereError)
            raise kind(f"process {process}: {text.lstrip(_RETRIED + _LOST_LOCK)}")


def gather_texts(text: str) -> list[str]:
    """Returns the text of each process, cut to 1,024 bytes; every process must call it."""
    if jax.process_count() == 1:
        return [text]
    padded = text.encode()[:_MESSAGE_BYTES].ljust(_MESSAGE_BYTES, b"\0")
    rows = np.asarray(multihost_utils.process_allgather(np.frombuffer(padded, np.uint8)))
    return [bytes(row).rstrip(b"\0").decode(errors="replace") for row in rows]


def _message(error: BaseException) -> str:
    """Returns an error as one line; a user's error in its own words."""
    storage = error if isinstance(error, StorageError) else storage_failure(error)
    if isinstance(storage, StorageError):
        return f"{_LOST_LOCK if isinstance(storage, LostLockError) else _RETRIED}{storage}"
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {first_line(error)}"
