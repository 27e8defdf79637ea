"""The lines of text files, `.zst`, `.gz` or plain, so that damage is never an early end."""

import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import zstandard

from data_pipelines.text.inputs import open_input, unreadable

READ_BYTES = 1 << 16
COMPRESSED_BYTES = 1 << 11  # zstandard's 4 bytes may stand for 128 KiB, which come at once
GZIP_HEADER = 16 + zlib.MAX_WBITS


class Damage(str):
    """What is wrong with the rest of a file: a key of `rows.FAULTS`."""


ENORMOUS = Damage("enormous_line")


class _Frame(Protocol):
    """A decompressor of one zstandard frame or gzip member."""

    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


FRAMES: dict[str, Callable[[], _Frame]] = {
    # Frames made with --long=31 too; memory for such a window is taken only for them.
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ".gz": lambda: zlib.decompressobj(GZIP_HEADER),
}
"""What decompresses a file, by the end of its name; any other is plain."""


def numbered_lines(
    path: str | os.PathLike[str], max_line_bytes: int
) -> Iterator[tuple[int, bytes | Damage]]:
    """Yields each line's number, from 1, and the line without its end; blank ones are left out.

    Args:
      path: local or gs://; compressed if its name says so.
      max_line_bytes: longer lines are `ENORMOUS` and are never held in memory.

    Raises:
      UserError: the file cannot be opened or read.
    """
    number, size = 1, 0
    held: list[bytes] = []
    for piece in itertools.chain(pieces(path), [b"\n"]):
        if isinstance(piece, Damage):
            # What is held of a line is lost with the rest of the file.
            yield number, piece
            return
        *ended, rest = piece.split(b"\n")
        for part in ended:
            if size + len(part) > max_line_bytes:
                yield number, ENORMOUS
            elif (line := b"".join([*held, part])).strip():
                yield number, line
            number, size, held = number + 1, 0, []
        size += len(rest)
        held = [*held, rest] if size <= max_line_bytes else []


def pieces(path: str | os.PathLike[str]) -> Iterator[bytes | Damage]:
    """Yields a file's decompressed content in pieces, and the damage that ends it, if any.

    zstandard's own stream reader ends quietly where a truncated file ends, so frames are
    decompressed by hand and each must reach its end.

    Raises:
      UserError: the file cannot be opened or read.
    """
    new_frame = FRAMES.get(os.path.splitext(path)[1])
    # Even nothing is compressed to a frame, so a file of zero bytes is cut off.
    frame = new_frame and new_frame()
    try:
        with open_input(path) as file:
            while data := file.read(COMPRESSED_BYTES if new_frame else READ_BYTES):
                if new_frame is None:
                    yield data
                    continue
                while data:
                    frame = frame or new_frame()
                    yield frame.decompress(data)
                    data = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
    except OSError as error:
        raise unreadable(path, error) from error
    except (zstandard.ZstdError, zlib.error):
        yield Damage("corrupt_file")
        return
    if frame is not None:
        yield Damage("truncated_file")
