"""Lines of text files, compressed or plain; damage is reported, never taken for the end.

The checksum of a zstandard frame, gzip member, xz stream or bzip2 stream (a frame, below) is known
at its end. A compressed file is therefore decompressed twice: the first pass checks each frame and
keeps no content, the second yields the frames before the first one that fails. Memory does not grow
with the file.
"""

import bz2
import io
import itertools
import lzma
import os
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

import zstandard

from data_pipelines.text.inputs import open_input, unreadable
from prts_jax.paths import PathLike

READ_BYTES = 1 << 16
COMPRESSED_BYTES = 1 << 11  # 4 bytes of zstandard may decompress to 128 KiB at once
HELD_BYTES = 1 << 25  # a smaller file is read once and held for both passes
GZIP_HEADER = 16 + zlib.MAX_WBITS
XZ_MEMORY = 1 << 30  # xz -9 takes 64 MiB


@dataclass(frozen=True)
class Damage:
    """Content that is lost.

    Attributes:
      kind: a key of `rows.FAULTS`.
      lost_bytes: bytes of the compressed file from the damage on; 0 for a single line.
    """

    kind: str
    lost_bytes: int = 0


ENORMOUS = Damage("enormous_line")


class _Frame(Protocol):
    """A decompressor of one frame."""

    def decompress(self, data: bytes, /) -> bytes: ...

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...


FRAMES: dict[str, Callable[[], _Frame]] = {
    # Accepts frames of --long=31; only they take memory for such a window.
    ".zst": lambda: zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj(),
    ".gz": lambda: zlib.decompressobj(GZIP_HEADER),
    ".xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, XZ_MEMORY),
    ".bz2": bz2.BZ2Decompressor,
}
"""Decompressors by the extension of a file, in lower case; other files are plain."""

# Zero bytes may pad gzip members and xz streams; no frame of any format begins with one.
PADDING = b"\0"


def numbered_lines(path: PathLike, max_line_bytes: int) -> Iterator[tuple[int, bytes | Damage]]:
    """Yields each line's number, from 1, and the line without its end; skips blank lines.

    Lines of more than `max_line_bytes` become `ENORMOUS` and are never held in memory. A file of
    zero bytes is truncated: writers of JSON lines leave it behind when they fail.

    Raises:
      UserError: the file cannot be opened or read.
    """
    number, size = 1, 0
    held: list[bytes] = []
    content = chunks(path)
    first = next(content, None)
    if first is None and compression(path) is None:
        yield 1, Damage("truncated_file")
        return
    for piece in itertools.chain([] if first is None else [first], content, [b"\n"]):
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


def compression(path: PathLike) -> str | None:
    """Returns the key of `FRAMES` for a file, or None if it is plain."""
    ending = os.path.splitext(path)[1].lower()
    return ending if ending in FRAMES else None


def chunks(path: PathLike) -> Iterator[bytes | Damage]:
    """Yields a file's decompressed content in pieces, then the damage that ends it, if any.

    Yields nothing of a frame that is cut off, cannot be decoded or fails its checksum, and nothing
    after it. A zstandard frame without a checksum, which is optional, cannot be checked for
    altered bytes.

    Raises:
      UserError: the file cannot be opened or read.
    """
    ending = compression(path)
    try:
        with open_input(path) as file:
            if ending is None:
                while data := file.read(READ_BYTES):
                    yield data
                return
            begin = file.read(HELD_BYTES + 1)
            compressed = file if len(begin) > HELD_BYTES else io.BytesIO(begin)
            whole, damage = _check(compressed, FRAMES[ending])
            compressed.seek(0)
            content = _contents(compressed, FRAMES[ending])
            while whole > 0:
                piece = next(content)[0][:whole]
                whole -= len(piece)
                yield piece
    except (_Corrupt, EOFError):
        yield Damage("corrupt_file")  # the file changed between the passes
        return
    except OSError as error:
        raise unreadable(path, error) from error
    if damage is not None:
        yield damage


class _Corrupt(Exception):
    """A frame that cannot be decoded."""


def _check(file: BinaryIO, new_frame: Callable[[], _Frame]) -> tuple[int, Damage | None]:
    """Returns the decompressed bytes of the whole frames, and the damage after them."""
    file.seek(0)
    seen = whole = whole_compressed = 0
    try:
        for content, frame_end in _contents(file, new_frame):
            seen += len(content)
            if frame_end is not None:
                whole, whole_compressed = seen, frame_end
    except EOFError:
        kind = "truncated_file"
    except _Corrupt:
        kind = "corrupt_file"
    else:
        return whole, None
    return whole, Damage(kind, file.seek(0, os.SEEK_END) - whole_compressed)


def _contents(
    file: BinaryIO, new_frame: Callable[[], _Frame]
) -> Iterator[tuple[bytes, int | None]]:
    """Yields decompressed content, and the compressed offset where a frame ends with it.

    Raises:
      EOFError: the file ends within a frame. Even empty text compresses to a frame, so a file of
        zero bytes does.
      _Corrupt: a frame cannot be decoded or fails its checksum.
    """
    frame: _Frame | None = new_frame()
    offset = 0
    while data := file.read(COMPRESSED_BYTES):
        offset += len(data)
        while data:
            if frame is None:
                data = data.lstrip(PADDING)
                if not data:
                    break
                frame = new_frame()
            try:
                content = frame.decompress(data)
            # bz2 raises OSError and ValueError for bad data.
            except (zstandard.ZstdError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
                raise _Corrupt from error
            data = frame.unused_data if frame.eof else b""
            yield content, offset - len(data) if frame.eof else None
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError
