"""Input files on local disk or on gs://: which there are, how large they are, and opening them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from prts_jax.errors import UserError
from prts_jax.paths import is_remote


def glob_files(directory: str | os.PathLike[str], pattern: str) -> list[str]:
    """Returns the files below a folder that match, in the order of their numbers.

    Args:
      directory: local or gs://.
      pattern: relative to it; `**` stands for any number of folders.
    """
    if is_remote(directory):
        found = _bucket().glob(f"{os.fspath(directory).rstrip('/')}/{pattern}")
        files = [f"gs://{path}" for path in found]
    else:
        files = [str(path) for path in Path(directory).glob(pattern) if path.is_file()]
    return sorted(files, key=by_number)


def by_number(path: str) -> list[tuple[int, str]]:
    """Returns a key that sorts chunk2 before chunk10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def common_folder(files: Sequence[str]) -> str:
    """Returns the deepest folder that holds all files, absolute or gs://."""
    scheme = "gs://" if is_remote(files[0]) else ""
    bare = [file.removeprefix("gs://") if scheme else os.path.abspath(file) for file in files]
    return scheme + os.path.commonpath([os.path.dirname(path) for path in bare])


def relative_names(files: Sequence[str]) -> list[str]:
    """Returns the files' names below their common folder, so that it may be moved as a whole."""
    folder = common_folder(files)
    return [os.path.relpath(file, folder) for file in files]


def file_sizes(files: Sequence[str]) -> list[int]:
    """Returns the bytes of each file; on gs:// with one listing, for a request each takes hours.

    Raises:
      UserError: a file is not there.
    """
    try:
        if not files or not is_remote(files[0]):
            return [os.path.getsize(file) for file in files]
        listing = _bucket().find(common_folder(files), detail=True, refresh=True)
        return [listing[file.removeprefix("gs://")]["size"] for file in files]
    except OSError as error:
        raise UserError(f"cannot read the input: {error}; mend it, start again") from error
    except KeyError as error:
        raise UserError(f"the input gs://{error.args[0]} is gone: start again") from error


def open_input(path: str | os.PathLike[str]) -> BinaryIO:
    """Opens a file for reading.

    Raises:
      OSError: it cannot be read.
    """
    if is_remote(path):
        file: BinaryIO = _bucket().open(path, "rb")
        return file
    return open(path, "rb")


def unreadable(path: str | os.PathLike[str], error: OSError) -> UserError:
    """Returns the error that says that a file cannot be read."""
    reason = error.strerror or error
    return UserError(f"cannot read {os.fspath(path)}: {reason}; mend it, start again")


def _bucket() -> Any:
    import fsspec

    return fsspec.filesystem("gs")
