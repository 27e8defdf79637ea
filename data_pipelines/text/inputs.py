"""Input files on local disk or on gs://: listing, sizes, versions and opening."""

import fnmatch
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from prts_jax.errors import UserError
from prts_jax.paths import PathLike, is_remote


def glob_files(directory: PathLike, pattern: str) -> list[str]:
    """Returns the files below a folder that match a pattern relative to it, in numeric order.

    `**` stands for any number of folders, hidden ones left out. Links to folders are followed. A
    folder that cannot be listed is an error, because otherwise its files would be missing silently.

    Raises:
      UserError: a folder that cannot be read or lies within itself, or a link that leads nowhere.
    """
    try:
        if is_remote(directory):
            entries = _bucket().glob(f"{os.fspath(directory).rstrip('/')}/{pattern}", detail=True)
            files = [f"gs://{path}" for path, entry in entries.items() if entry["type"] == "file"]
        elif not os.path.lexists(directory):
            files = []
        else:
            files = list(_local_files(os.fspath(directory), pattern.split("/"), ()))
    except OSError as error:
        raise UserError(f"cannot list the input: {error}; fix that and start again") from error
    return sorted(files, key=by_number)


Inode = tuple[int, int]


def _local_files(folder: str, pattern: Sequence[str], above: tuple[Inode, ...]) -> Iterator[str]:
    """Yields the files that match; `above` are the folders on the path to this one."""
    status = os.stat(folder)
    here = status.st_dev, status.st_ino
    if here in above:
        raise UserError(f"the input {folder} lies within itself: remove that link")
    anywhere = pattern[0] == "**"
    name, deeper = (pattern[1], pattern) if anywhere else (pattern[0], pattern[1:])
    with os.scandir(folder) as entries:
        for entry in entries:
            if anywhere and entry.name.startswith((".", "_")):
                continue  # hidden: .cache, .git, _SUCCESS
            matches = fnmatch.fnmatchcase(entry.name, name)
            wanted = matches or anywhere
            if wanted and entry.is_symlink() and not os.path.exists(entry.path):
                raise UserError(f"the input {entry.path} is a link to nothing: fix or remove it")
            if entry.is_dir():
                if wanted and deeper:
                    yield from _local_files(entry.path, deeper, (*above, here))
            elif matches and (anywhere or not deeper):
                yield entry.path


def by_number(path: str) -> tuple[list[tuple[int, str]], str]:
    """Returns a sort key that puts chunk2 before chunk10; equal only for equal paths."""
    parts = re.split(r"(\d+)", path)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts], path


def common_folder(files: Sequence[str]) -> str:
    """Returns the deepest folder that holds all files, absolute or gs://."""
    scheme = "gs://" if is_remote(files[0]) else ""
    bare = [file.removeprefix("gs://") if scheme else os.path.abspath(file) for file in files]
    return scheme + os.path.commonpath([os.path.dirname(path) for path in bare])


def relative_names(files: Sequence[str]) -> list[str]:
    """Returns the files' names below their common folder, which may then move as a whole."""
    folder = common_folder(files)
    return [os.path.relpath(file, folder) for file in files]


def input_sizes(files: Sequence[str]) -> list[int]:
    """Returns the bytes of each file; on gs:// from one listing, as single requests take hours.

    Raises:
      UserError: a file is missing.
    """
    try:
        if not files or not is_remote(files[0]):
            return [os.path.getsize(file) for file in files]
        listing = _bucket().find(common_folder(files), detail=True, refresh=True)
        return [listing[file.removeprefix("gs://")]["size"] for file in files]
    except OSError as error:
        raise UserError(f"cannot read the input: {error}; fix that and start again") from error
    except KeyError as error:
        raise UserError(f"the input gs://{error.args[0]} is gone: start again") from error


def file_version(path: PathLike) -> str:
    """Returns a value that changes with the file: its time, on gs:// its checksum.

    Raises:
      UserError: the file is missing.
    """
    try:
        if is_remote(path):
            return str(_bucket().info(path)["crc32c"])
        return str(os.stat(path).st_mtime_ns)
    except OSError as error:
        raise unreadable(path, error) from error


def open_input(path: PathLike) -> BinaryIO:
    """Opens a file for reading.

    Raises:
      OSError: it cannot be read.
    """
    if is_remote(path):
        file: BinaryIO = _bucket().open(path, "rb")
        return file
    return open(path, "rb")


def unreadable(path: PathLike, error: OSError) -> UserError:
    """Returns the UserError for a file that cannot be read."""
    reason = error.strerror or error
    return UserError(f"cannot read {os.fspath(path)}: {reason}; fix that and start again")


def _bucket() -> Any:
    import fsspec

    return fsspec.filesystem("gs")
