"""Errors that end a command with a known exit code (see `prts_jax.cli`)."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator


class UserError(Exception):
    """A mistake in what the user gave: exit code 2 and this one line, without a traceback.

    The message says what is wrong, where it is and what to do about it, in one line.
    """


class Interrupted(Exception):
    """A run that stopped early and can be resumed (preemption, SIGTERM): exit code 75."""


class DivergedError(Exception):
    """A run whose losses or gradients are no numbers any more: exit code 1 and this one line."""


class StorageError(Exception):
    """A disk or object store that failed (full, away, refusing): exit code 75 and this one line.

    Raise it only where the state on disk is whole, so that the same command goes on once the
    storage works again.
    """


class LostLockError(StorageError):
    """The workdir's lock, taken over by another process: nothing more may be written there."""


START_AGAIN = ", then start the same command again"
"""End of the message of an error that ends the command."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Error codes of a full disk, quota or file."""

_ABSENT = frozenset({errno.ENOENT})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_WRONG_KIND = frozenset(
    {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}
)

_CODES = (
    (FileNotFoundError, errno.ENOENT),
    (FileExistsError, errno.EEXIST),
    (PermissionError, errno.EACCES),
    (NotADirectoryError, errno.ENOTDIR),
    (IsADirectoryError, errno.EISDIR),
    (TimeoutError, errno.ETIMEDOUT),
)

_NETWORK = frozenset({"aiohttp", "gcsfs", "google", "requests", "urllib3"})
"""Libraries of object stores, whose errors are no OSError."""

# tensorstore and Orbax raise ValueError, RuntimeError or Exception, with a code in the text.
_TENSORSTORE = re.compile(r"\b(os_error|http_response|curl)_code='(\d+)'")


def is_storage_error(error: BaseException) -> bool:
    """Returns whether an error comes from a disk or an object store."""
    return (
        isinstance(error, OSError)
        or type(error).__module__.partition(".")[0] in _NETWORK
        or _TENSORSTORE.search(str(error)) is not None
    )


def os_code(error: BaseException) -> int | None:
    """Returns the `errno` of a storage error; None if it has none (HTTP 403, 503, no network)."""
    if isinstance(error, OSError):
        by_type = next((code for kind, code in _CODES if isinstance(error, kind)), None)
        return error.errno or by_type
    for kind, code in _TENSORSTORE.findall(str(error)):
        if kind == "os_error":
            return int(code)
        if (kind, code) == ("http_response", "404"):
            return errno.ENOENT
    return None


def storage_error(what: str, error: BaseException) -> UserError | StorageError:
    """Returns the error of one line that stands for an error of a disk or an object store.

    A path that is missing, forbidden, read-only or of another kind is the user's mistake. All else
    (full, failing, stale, timed out, HTTP 403 or 503) is the storage's and may pass.

    Args:
      what: what could not be done with which path, "PATH: cannot be read".
      error: raised by the operating system, gcsfs, tensorstore or Orbax.
    """
    code, reason = os_code(error), storage_reason(error)
    if code in _ABSENT:
        return UserError(f"{what} ({reason}); check the path")
    if code in _FORBIDDEN:
        return UserError(f"{what} ({reason}); change its permissions, or choose another path")
    if code in _WRONG_KIND:
        return UserError(f"{what} ({reason}); choose another path")
    advice = "free space" if code in FULL else "see whether the storage works"
    return StorageError(f"{what} ({reason}); {advice}{START_AGAIN}")


def storage_reason(error: BaseException) -> str:
    """Returns what a storage error says in a few words: "No space left on device", "HTTP 503"."""
    code = os_code(error)
    if code is not None and code > 0:
        return os.strerror(code)
    http = [n for kind, n in _TENSORSTORE.findall(str(error)) if kind == "http_response"]
    if isinstance(number := getattr(error, "code", None), int):  # gcsfs
        http.append(str(number))
    return f"HTTP {http[0]}" if http else first_line(error)


def storage_failure(error: BaseException) -> UserError | StorageError | None:
    """Returns `storage_error` for an error that nothing has converted; None for other errors.

    A missing file is left out: where nobody expects it, it is more likely a fault of the program.
    """
    code = os_code(error)
    if code == errno.ENOENT or not is_storage_error(error):
        return None
    if code is None and isinstance(error, OSError) and not str(error).startswith("Forbidden: "):
        return None  # some library's own use of OSError; gcsfs reports HTTP 403 as Forbidden
    name = getattr(error, "filename", None)
    return storage_error(f"{name or 'storage'}: cannot be used", error)


@contextlib.contextmanager
def storage_errors(what: str) -> Iterator[None]:
    """Converts storage errors of the block to errors of one line; others pass unchanged.

    Args:
      what: see `storage_error`.

    Raises:
      UserError: the path is missing, forbidden, read-only or of another kind.
      StorageError: the disk or object store failed.
    """
    try:
        yield
    except Exception as error:
        if not is_storage_error(error):
            raise
        raise storage_error(what, error) from error


def first_line(error: BaseException, most: int = 200) -> str:
    """Returns the first line of an error's text, or the name of its type where it has no text.

    Args:
      error: raised by a library, perhaps with a text of many lines.
      most: characters of the line that are kept.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:most]


def escaped(text: str) -> str:
    """Returns text with line breaks, control characters and bytes that are not UTF-8 as escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def without_credentials(text: str) -> str:
    """Replaces user names, passwords and tokens in the URLs of a text by `***`."""
    text = re.sub(r"(?i)\b([a-z][a-z0-9+.-]*://)[^/\s'\"@:]*:[^/\s'\"]*@", r"\1***@", text)
    text = re.sub(r"(?i)\b(https?://)[^/\s'\"]+@", r"\1***@", text)
    return re.sub(r"(?i)([?&][a-z_-]*(?:token|key|secret|password)=)[^&\s'\"]+", r"\1***", text)


def one_line(text: str) -> str:
    """Returns text as one line for a terminal.

    Hides credentials in URLs, escapes line breaks and control characters, and cuts the middle out
    of words of over 400 characters and of lines of over 4,000.
    """
    line = re.sub(r"(\S{100})\S{200,}(\S{100})", r"\1…\2", escaped(without_credentials(text)))
    return line if len(line) <= 4000 else f"{line[:3000]} … {line[-900:]}"
