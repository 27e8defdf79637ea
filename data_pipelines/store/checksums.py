"""Check of a store's files as they are read, so that no damaged byte reaches a batch.

A store's file `checksums` holds the CRC-32 of every block of `BLOCK` bytes of all its files, as
little-endian uint32: shard after shard in the index's order, within a shard in the order of
`store.file_sizes`, the last block of a file shorter. The index holds the file's own digest.

A block is compared with its checksum when it is first read; later reads trust the disk. Stores of
older versions have no checksums, only digests of whole files. There the small files (ends and
sources) are compared with their digest when they are opened, and tokens and answers by a thread
that reads each file in whole once a part of it has been read. A store of less than `SMALL` bytes
does not wait for that thread: its files are compared before their first read.
"""

import hashlib
import os
import sys
import threading
import zlib
from collections.abc import Callable, Iterable, Mapping
from queue import SimpleQueue

import numpy as np

from data_pipelines.store.files import Files, Item, Result
from prts_jax.errors import UserError

CHECKSUMS = "checksums"
BLOCK = 1 << 15  # bytes: 122 MB of checksums for a TB
CRC_DTYPE = np.dtype("<u4")
SMALL = 1 << 30
READ_BYTES = 1 << 24  # at once
BYTE = np.dtype("u1")


def blocks(size: int, block: int = BLOCK) -> int:
    """Returns the number of blocks of a file of `size` bytes."""
    return -(-size // block)


class Digests:
    """SHA-256 of a file and CRC-32 of its blocks, from its bytes in pieces of any size."""

    def __init__(self) -> None:
        self._whole, self._crcs = hashlib.sha256(), list[int]()
        self._crc, self._filled = 0, 0

    def update(self, piece: bytes | memoryview) -> None:
        """Adds the next bytes."""
        view = memoryview(piece).cast("B")
        self._whole.update(view)
        while len(view):
            part, view = view[: BLOCK - self._filled], view[BLOCK - self._filled :]
            self._crc = zlib.crc32(part, self._crc)
            self._filled += len(part)
            if self._filled == BLOCK:
                self._crcs.append(self._crc)
                self._crc, self._filled = 0, 0

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes."""
        return self._whole.hexdigest()

    @property
    def crcs(self) -> bytes:
        """CRC-32 of each block, as in the file of checksums."""
        last = [self._crc] if self._filled else []
        return np.array([*self._crcs, *last], CRC_DTYPE).tobytes()


class _Checked:
    """Files of a store that are checked as they are read; see `files.Files`."""

    def __init__(self, files: Files, directory: str, sizes: Mapping[str, int]):
        self._files, self._directory, self._sizes = files, directory, sizes

    def sizes(self) -> dict[str, int]:
        """Implements `Files.sizes`."""
        return self._files.sizes()

    def map(self, function: Callable[[Item], Result], items: list[Item]) -> list[Result]:
        """Implements `Files.map`."""
        return self._files.map(function, items)

    def _damaged(self, name: str, where: str) -> UserError:
        return UserError(
            f"damaged token store: {self._directory}/{name} {where}; copy that file again, or "
            "delete the store and cache again"
        )


class BlockChecked(_Checked):
    """Files whose blocks are compared with their checksums when they are first read."""

    def __init__(
        self, files: Files, directory: str, sizes: Mapping[str, int], crcs: np.ndarray, block: int
    ):
        """Takes the bytes of each file by name, in order, and the checksums of all their blocks."""
        super().__init__(files, directory, sizes)
        self._crcs, self._block = crcs, block
        counts = np.array([blocks(size, block) for size in sizes.values()], np.int64)
        self._first = dict(zip(sizes, (np.cumsum(counts) - counts).tolist(), strict=True))
        self._checked = np.zeros(len(crcs), bool)

    def read(self, name: str, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
        """Implements `Files.read`.

        Raises:
          UserError: a block is damaged, or the file cannot be read.
        """
        begin, end = start * dtype.itemsize, stop * dtype.itemsize
        first, last = begin // self._block, blocks(end, self._block)
        number = self._first[name]
        if self._checked[number + first : number + last].all():
            return self._files.read(name, dtype, start, stop)
        offset = first * self._block
        content = self._files.read(name, BYTE, offset, min(last * self._block, self._sizes[name]))
        self._check(name, first, content)
        return content[begin - offset : end - offset].view(dtype)

    def whole(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        """Implements `Files.whole`."""
        array = self._files.whole(name, dtype, count)
        self._check(name, 0, array.view(BYTE))
        return array

    def _check(self, name: str, first: int, content: np.ndarray) -> None:
        """Compares whole blocks, the first of which has number `first` in its file."""
        number = self._first[name] + first
        for index in range(blocks(len(content), self._block)):
            if self._checked[number + index]:
                continue
            offset = index * self._block
            block = content[offset : offset + self._block]
            if zlib.crc32(block.data) != self._crcs[number + index]:
                raise self._damaged(
                    name,
                    f"does not match its checksum between bytes {first * self._block + offset:,} "
                    f"and {first * self._block + min(offset + self._block, len(content)):,}",
                )
            self._checked[number + index] = True


class DigestChecked(_Checked):
    """Files of an older store, compared with their digests as described above."""

    def __init__(
        self, files: Files, directory: str, sizes: Mapping[str, int], digests: Mapping[str, str]
    ):
        """Takes the bytes and the SHA-256 of each file by name."""
        super().__init__(files, directory, sizes)
        self._digests = digests
        self._is_small = sum(sizes.values()) <= SMALL
        self._lock, self._begun = threading.Lock(), set[str]()
        self._waiting: SimpleQueue[str] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._fault: Exception | None = None

    def read(self, name: str, dtype: np.dtype, start: int, stop: int) -> np.ndarray:
        """Implements `Files.read`.

        Raises:
          UserError: this file, or one read earlier, is damaged, or the file cannot be read.
        """
        if self._fault is not None:
            raise self._fault
        if name not in self._begun:
            self._begin(name)
        return self._files.read(name, dtype, start, stop)

    def whole(self, name: str, dtype: np.dtype, count: int) -> np.ndarray:
        """Implements `Files.whole`."""
        array = self._files.whole(name, dtype, count)
        if name not in self._begun:
            self._compare(name, [array.view(BYTE)])
            self._begun.add(name)
        return array

    def _begin(self, name: str) -> None:
        if self._is_small:
            self._compare(name, self._parts(name))
            self._begun.add(name)
            return
        with self._lock:
            if name not in self._begun:
                self._begun.add(name)
                self._waiting.put(name)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._compare_waiting, name="digests", daemon=True
                )
                self._thread.start()

    def _compare_waiting(self) -> None:
        if sys.platform == "linux":  # there it is the priority of this thread alone
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        while self._fault is None:
            name = self._waiting.get()
            try:
                self._compare(name, self._parts(name))
            except Exception as error:
                self._fault = error

    def _parts(self, name: str) -> Iterable[np.ndarray]:
        size = self._sizes[name]
        for start in range(0, size, READ_BYTES):
            yield self._files.read(name, BYTE, start, min(start + READ_BYTES, size))

    def _compare(self, name: str, parts: Iterable[np.ndarray]) -> None:
        digest = hashlib.sha256()
        for part in parts:
            digest.update(part.data)
        if digest.hexdigest() != self._digests[name]:
            raise self._damaged(name, f"({self._sizes[name]:,} bytes) does not match its digest")
