"""Arrays in files of one folder, on local disk or on gs://, read in parts.

Locally an array is a memory map. On object storage a part is one range request, and nothing is
kept but what the caller keeps, so memory is bounded whatever the folder's size.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np

from prts_jax.errors import UserError
from prts_jax.paths import as_path, is_remote

OPEN_MAPS = 256  # a map holds a file descriptor, and a process may have as few as 1,024
REQUESTS = 16  # at once; a request to object storage mostly waits

Item = TypeVar("Item")
Result = TypeVar("Result")


class Files(Protocol):
    """The files of one folder."""

    def sizes(self) -> dict[str, int]:
        """Returns the bytes of each file by name, in one listing; empty without the folder."""

    def read(self, name: str, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
        """Returns items [start, stop) of a file; stop is not beyond its end."""

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        """Returns the function of each item, at once where that hides waiting."""


def open_files(directory: str | os.PathLike[str]) -> Files:
    """Returns the files of a folder, local or gs://."""
    return RemoteFiles(os.fspath(directory)) if is_remote(directory) else LocalFiles(directory)


class LocalFiles:
    """Files on a disk of this machine."""

    def __init__(self, directory: str | os.PathLike[str]):
        self._directory = as_path(directory)
        self._map = lru_cache(OPEN_MAPS)(self._open)

    def sizes(self) -> dict[str, int]:
        """Implements `Files.sizes`."""
        try:
            with os.scandir(self._directory) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except FileNotFoundError:
            return {}

    def read(self, name: str, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
        """Implements `Files.read`; a view into the file's memory map."""
        if start == stop:  # an empty file cannot be mapped
            return np.empty(0, dtype)
        return self._map(name, dtype)[start:stop]

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        """Implements `Files.map`."""
        return [function(item) for item in items]

    def _open(self, name: str, dtype: np.dtype) -> np.ndarray:
        # As a plain array: slicing a np.memmap costs ten times as much.
        return np.asarray(np.memmap(self._directory / name, dtype=dtype, mode="r"))


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
        found = self._system.find(self._directory, detail=True, refresh=True)
        return {path.rsplit("/", 1)[1]: entry["size"] for path, entry in found.items()}

    def read(self, name: str, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
        """Implements `Files.read`; one range request.

        Raises:
          UserError: the object is gone or not readable.
        """
        if start == stop:
            return np.empty(0, dtype)
        path, size = f"{self._directory}/{name}", dtype.itemsize
        try:
            content = self._system.cat_file(path, start=start * size, end=stop * size)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error}; check that it is there") from error
        if len(content) != (stop - start) * size:
            raise UserError(f"cannot read {path}: it ended early; copy the store there again")
        return np.frombuffer(content, dtype)

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        """Implements `Files.map`, with `REQUESTS` threads."""
        return list(self._threads.map(function, items))
