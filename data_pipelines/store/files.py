"""Arrays in the files of one folder, on local disk or on gs://, read in parts.

A part is one read of the disk, or one range request, of exactly the bytes needed. Nothing is kept
here, so memory does not grow with the folder. Parts are not memory-mapped, because a page fault
reads ahead far more than a window needs. An array that is searched is a memory map on a local disk.
"""

import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from prts_jax.errors import UserError, is_storage_error, storage_error, storage_errors
from prts_jax.paths import PathLike, as_path, is_remote

OPEN_FILES = 128  # of a store; a process reads two, and its limit may be 1,024
REQUESTS = 16  # at the same time; a request to object storage mostly waits

Item = TypeVar("Item")
Result = TypeVar("Result")


class Files(Protocol):
    """The files of one folder."""

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file by name, from one listing; empty without the folder."""

    def read(self, name: str, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
        """Returns items [start, stop) of a file, which must have them."""

    def whole(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        """Returns a file of `count` items for a caller that looks at only some of them."""

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        """Returns the function of each item, computed in parallel where requests wait."""


def open_files(directory: PathLike) -> Files:
    """Returns the files of a folder, local or gs://."""
    return RemoteFiles(os.fspath(directory)) if is_remote(directory) else LocalFiles(directory)


class _OpenFile:
    """A file descriptor that closes with its last reference."""

    def __init__(self, number: int):
        self.number = number
        if hasattr(os, "posix_fadvise"):  # not on macOS
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        os.close(self.number)


class LocalFiles:
    """Files on a disk of this machine."""

    def __init__(self, directory: PathLike):
        self._directory = Path(as_path(directory))
        self._open = lru_cache(OPEN_FILES)(
            lambda name: _OpenFile(os.open(self._directory / name, os.O_RDONLY))
        )

    def sizes(self) -> dict[str, int]:
        """Implements `Files.sizes`."""
        try:
            with os.scandir(self._directory) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}

    def read(self, name: str, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
        """Implements `Files.read`.

        Raises:
          UserError: the file is missing, not readable, or shorter than it should be.
          StorageError: the disk failed.
        """
        size = dtype.itemsize
        try:
            # The reference keeps it open: another thread may evict it from the cache.
            file = self._open(name)
            content = os.pread(file.number, (stop - start) * size, start * size)
        except OSError as error:
            raise storage_error(f"cannot read {self._directory / name}", error) from error
        if len(content) != (stop - start) * size:
            raise UserError(
                f"cannot read {self._directory / name}: it ended early; copy the store there again"
            )
        return np.frombuffer(content, dtype)

    def whole(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        """Implements `Files.whole`; a memory map."""
        if not count:  # an empty file cannot be mapped
            return np.empty(0, dtype)
        with (
            storage_errors(f"cannot read {self._directory / name}"),
            open(self._directory / name, "rb") as file,
        ):
            pages = mmap.mmap(file.fileno(), count * dtype.itemsize, access=mmap.ACCESS_READ)
        pages.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(pages, dtype)

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        """Implements `Files.map`."""
        return [function(item) for item in items]


class RemoteFiles:
    """Files on gs://, through gcsfs."""

    def __init__(self, directory: str):
        self._directory = directory.rstrip("/")

    @cached_property
    def _system(self) -> Any:
        import fsspec

        return fsspec.filesystem("gs")

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(REQUESTS, "range-read")

    def sizes(self) -> dict[str, int]:
        """Implements `Files.sizes`."""
        with storage_errors(f"cannot list {self._directory}"):
            listing = self._system.find(self._directory, detail=True, refresh=True)
        return {path.rsplit("/", 1)[1]: entry["size"] for path, entry in listing.items()}

    def read(self, name: str, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
        """Implements `Files.read`; one range request.

        Raises:
          UserError: the object is missing or shorter than it should be.
          StorageError: the object store failed or refuses.
        """
        if start == stop:
            return np.empty(0, dtype)
        path, size = f"{self._directory}/{name}", dtype.itemsize
        try:
            content = self._system.cat_file(path, start=start * size, end=stop * size)
        except Exception as error:
            if not is_storage_error(error):
                raise
            raise storage_error(f"cannot read {path}", error) from error
        if len(content) != (stop - start) * size:
            raise UserError(f"cannot read {path}: it ended early; copy the store there again")
        return np.frombuffer(content, dtype)

    def whole(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        """Implements `Files.whole`, as `read`."""
        return self.read(name, dtype, 0, count)

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        """Implements `Files.map`, with `REQUESTS` threads."""
        return list(self._threads.map(function, items))
