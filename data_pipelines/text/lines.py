"""Lines of text files, `.zst`, `.gz` or plain; damage is reported, never taken for the end."""

import itertools
import os
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

import zstandard

from data_pipelines.text.inputs import open_input, unreadable

READ_BYTES = 1 << 16
COMPRESSED_BYTES = 1 << 11  # 4 bytes of zstandard may decompress to 128 KiB at once
GZIP_HEADER = 16 + zlib.MAX_WBITS


class Damage(str):
    """The kind of damage that ends a file: a key of `rows.FAULTS`."""


ENORMOUS = Damage("enormous_line")


class _Frame(Protocol):
    """A decompressor of one zstandard frame or gzip member."""

    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


FRAMES: dict[str, Callable[[], _Frame]] = {
    # Accepts frames of --long=31; only they take memory for such a window.
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ".gz": lambda: zlib.decompressobj(GZIP_HEADER),
}
"""Decompressors by the extension of a file; other files are plain."""


def numbered_lines(
    path: str | os.PathLike[str], max_line_bytes: int
) -> Iterator[tuple[int, bytes | Damage]]:
    """Yields each line's number, from 1, and the line without its end; skips blank lines.

    Args:
      path: local or gs://; its extension names the compression.
      max_line_bytes: longer lines become `ENORMOUS` and are never held in memory.

    Raises:
      UserError: the file cannot be opened or read.
    """
    number, size = 1, 0
    held: list[bytes] = []
    for piece in itertools.chain(pieces(path), [b"\n"]):
        if isinstance(piece, Damage):
            # The beginning of the line is lost with the rest of the file.
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
    """Yields a file's decompressed content in pieces, then the damage that ends it, if any.

    zstandard's stream reader ends silently at the end of a truncated file, so frames are
    decompressed one by one and each must reach its end.

    Raises:
      UserError: the file cannot be opened or read.
    """
    new_frame = FRAMES.get(os.path.splitext(path)[1])
    # Even empty text compresses to a frame, so a file of zero bytes is truncated.
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
