"""Errors that end a command with a known exit code (see `prts_jax.cli`)."""

import re


class UserError(Exception):
    """A mistake in what the user gave: exit code 2 and this one line, without a traceback.

    The message says what is wrong, where it is and what to do about it, in one line.
    """


class Interrupted(Exception):
    """A run that stopped early and can be resumed (preemption, SIGTERM): exit code 75."""


class StorageError(Exception):
    """A disk or object store that failed (full, away, refusing): exit code 75 and this one line.

    Raise it only where the state on disk is whole, so that the same command goes on once the
    storage works again.
    """


def first_line(error: BaseException, most: int = 200) -> str:
    """Returns the first line of an error's text, or the name of its type where it has no text.

    Args:
      error: raised by a library, perhaps with a text of many lines.
      most: characters of the line that are kept.
    """
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:most]


def one_line(text: str) -> str:
    """Returns text as one line for a terminal.

    Escapes line breaks and control characters, and cuts the middle out of words of over 400
    characters and of lines of over 4,000.
    """
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    line = re.sub(r"(\S{100})\S{200,}(\S{100})", r"\1…\2", line)
    return line if len(line) <= 4000 else f"{line[:3000]} … {line[-900:]}"
