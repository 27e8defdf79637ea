"""Damaged checkpoints told from storage that fails: only the first may be moved aside."""

import contextlib
import errno
import re
from collections.abc import Iterator

from prts_jax.errors import (
    StorageError,
    UserError,
    first_line,
    is_storage_error,
    os_code,
    storage_error,
)

GONE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}
)
"""Error codes of files that are missing or of another kind, which no retry brings back."""

# tensorstore's codes of storage that may recover, where the text has no code of the system.
_PASSING = re.compile(
    r"\b(UNAVAILABLE|DEADLINE_EXCEEDED|PERMISSION_DENIED|UNAUTHENTICATED|RESOURCE_EXHAUSTED"
    r"|ABORTED|CANCELLED):"
)


class DamagedError(UserError):
    """A checkpoint whose files are missing, unreadable or not what was saved.

    Attributes:
      checkpoint: path of the checkpoint.
      item: the damaged part: "lineage", "params", "optimizer", "ema", "matrices" or
        "tokenizer".
    """

    def __init__(self, checkpoint: str, item: str, message: str) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint
        self.item = item


def unreadable(checkpoint: str, item: str, where: str, error: Exception) -> Exception:
    """Returns the error for a part of a checkpoint that cannot be read.

    Args:
      checkpoint: path of the checkpoint.
      item: the part, as in `DamagedError`.
      where: the file or leaf, for the message.
      error: raised by the operating system, gcsfs, tensorstore, Orbax or a parser.

    Returns:
      `DamagedError` for files that are missing or cannot be decoded; `StorageError` or `UserError`
      for storage that fails or refuses; `error` itself if it is neither.
    """
    runtime = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")  # device memory
    if runtime or isinstance(error, UserError | StorageError | MemoryError):
        return error
    causes = list(_causes(error))
    storage = next((cause for cause in causes if is_storage_error(cause)), None)
    passing = next((cause for cause in causes if _PASSING.search(str(cause)[:2000])), None)
    if storage is not None and os_code(storage) not in GONE:
        return storage_error(f"{where}: cannot be read", storage)
    if storage is None and passing is not None:
        return storage_error(f"{where}: cannot be read", passing)
    # Orbax hides the reason behind its own error; tensorstore lists causes from the outside in.
    line = first_line(causes[-1] if type(error) is Exception else error, most=10_000)
    reason = line if len(line) < 200 else f"… {line.partition(' [')[0][-160:]}"
    return DamagedError(
        checkpoint,
        item,
        f"{where}: cannot be read; files are missing or damaged, use another checkpoint "
        f"({type(error).__name__}: {reason})",
    )


@contextlib.contextmanager
def reading(checkpoint: str, item: str, where: str) -> Iterator[None]:
    """Converts the errors of a block that reads a part of a checkpoint, see `unreadable`."""
    try:
        yield
    except Exception as error:
        converted = unreadable(checkpoint, item, where, error)
        if converted is error:
            raise
        raise converted from error


@contextlib.contextmanager
def agreed() -> Iterator[None]:
    """Runs a block that reads a checkpoint on all processes; they agree on its damage.

    Raises:
      DamagedError: the block raised it on any process (all raise that of the first).
      StoppedElsewhereError: the block raised another error on another process.
    """
    from prts_jax.processes import all_processes, gather_texts  # loads jax: readers start without

    damage: DamagedError | None = None
    with all_processes():
        try:
            yield
        except DamagedError as error:
            damage = error
    fields = (damage.checkpoint, damage.item, str(damage)) if damage else ()
    for text in filter(None, gather_texts("\n".join(fields))):
        raise DamagedError(*text.split("\n", 2)) from damage


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and the errors that led to it."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or seen.__context__
