"""Reads the rows of `.jsonl.zst` files so that nothing is lost without a word.

What cannot be a document is a `Fault` with its kind and its line, between the documents that are
good; the caller decides whether a fault ends the run or is left out and counted.
"""

import itertools
import json
import os
from collections.abc import Collection, Iterator
from typing import NamedTuple

import zstandard

from prts_jax.errors import UserError

TEXT_FIELD = "text"
SET_FIELD = "redpajama_set_name"
READ_BYTES = 1 << 16  # compressed; zstandard may return a thousand times as much at once
MAX_LINE_BYTES = 1 << 27  # far above any book, far below memory

FAULTS = {
    "truncated_file": "the file ends within a zstandard frame; fetch it again",
    "corrupt_file": "the file is not zstandard from here on; fetch it again",
    "enormous_line": f"the line is longer than {MAX_LINE_BYTES >> 20} MiB; split its document",
    "invalid_utf8": "the line is not UTF-8",
    "bad_json": "the line is not a JSON object",
    "missing_text": f"the row has no field {TEXT_FIELD!r}",
    "text_not_a_string": f"the row's {TEXT_FIELD!r} is not a string",
    "lone_surrogate": "the text holds half of a surrogate pair, which is no character",
    "empty_text": "the text is empty",
    "missing_set": f"the row has no field 'meta.{SET_FIELD}'",
    "unknown_set": f"the row's 'meta.{SET_FIELD}' is none of the corpus's sets",
}
"""Kinds of bad input, and what is wrong. A store's index lists lines by these names."""


class Document(NamedTuple):
    """One row: its text and the set it belongs to (`RedPajamaC4`, …)."""

    text: str
    set_name: str


class Fault(NamedTuple):
    """A row, or the rest of a file, that is no document.

    Attributes:
      kind: a key of `FAULTS`.
      line: of the decompressed file, from 1; for a damaged file the first line that is lost.
      detail: what the parser said, or the unknown name.
    """

    kind: str
    line: int
    detail: str = ""

    def error(self, path: str | os.PathLike[str]) -> UserError:
        """Returns the error that names file and line and says how to mend it."""
        detail = f" ({' '.join(self.detail.split())})" if self.detail else ""
        return UserError(
            f"{self.kind}: {os.fspath(path)}, line {self.line}: {FAULTS[self.kind]}{detail}; "
            "mend it, or leave such rows out with --on_error=skip"
        )


def read_rows(
    path: str | os.PathLike[str],
    sets: Collection[str] | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Document | Fault]:
    """Yields a file's documents and faults, one for each line that is not blank, in order.

    Args:
      path: a `.zst` file of JSON lines, of any number of frames.
      sets: the set names there are; None takes any.
      max_line_bytes: longer lines are faults and are never held in memory.

    Raises:
      UserError: the file cannot be opened or read from the disk.
    """
    for number, line in _numbered_lines(path, max_line_bytes):
        if isinstance(line, Fault):
            yield line
            continue
        row = parse_row(line, number)
        if sets is not None and isinstance(row, Document) and row.set_name not in sets:
            row = Fault("unknown_set", number, repr(row.set_name[:80]))
        yield row


def read_documents(path: str | os.PathLike[str]) -> Iterator[Document]:
    """Yields the documents of one file, in order.

    Raises:
      UserError: at the first fault, naming file and line.
    """
    for row in read_rows(path):
        if isinstance(row, Fault):
            raise row.error(path)
        yield row


def parse_row(line: bytes, number: int) -> Document | Fault:
    """Returns the document of one line `{"text": …, "meta": {"redpajama_set_name": …}}`."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Fault("invalid_utf8", number, error.reason)
    # A number of thousands of digits is a ValueError too, and deep nesting a RecursionError.
    except (ValueError, RecursionError) as error:
        return Fault("bad_json", number, str(error))
    if not isinstance(row, dict):
        return Fault("bad_json", number, f"a {type(row).__name__}")
    if TEXT_FIELD not in row:
        return Fault("missing_text", number)
    text, meta = row[TEXT_FIELD], row.get("meta")
    if not isinstance(text, str):
        return Fault("text_not_a_string", number)
    try:
        text.encode()
    except UnicodeEncodeError:
        return Fault("lone_surrogate", number)
    if not text:
        return Fault("empty_text", number)
    if not isinstance(meta, dict) or SET_FIELD not in meta:
        return Fault("missing_set", number)
    if not isinstance(meta[SET_FIELD], str):
        return Fault("unknown_set", number, "not a string")
    return Document(text, meta[SET_FIELD])


def _numbered_lines(
    path: str | os.PathLike[str], max_line_bytes: int
) -> Iterator[tuple[int, bytes | Fault]]:
    """Yields (number, line without its end); blank lines are left out, damage comes last."""
    number, size = 1, 0
    held: list[bytes] = []
    for piece in itertools.chain(_decompress(path), [b"\n"]):
        if isinstance(piece, str):
            # What is held of a line is lost with the rest of the file.
            yield number, Fault(piece, number)
            return
        *ended, rest = piece.split(b"\n")
        for part in ended:
            if size + len(part) > max_line_bytes:
                yield number, Fault("enormous_line", number)
            elif (line := b"".join([*held, part])).strip():
                yield number, line
            number, size, held = number + 1, 0, []
        size += len(rest)
        held = [*held, rest] if size <= max_line_bytes else []


def _decompress(path: str | os.PathLike[str]) -> Iterator[bytes | str]:
    """Yields the content of every frame in pieces, and the kind of damage where there is one.

    zstandard's own stream reader ends quietly where a truncated file ends, so the frames are
    decompressed by hand and each must reach its end.
    """
    frame = None
    try:
        with open(path, "rb") as file:
            while data := file.read(READ_BYTES):
                while data:
                    frame = frame or zstandard.ZstdDecompressor().decompressobj()
                    yield frame.decompress(data)
                    data = frame.unused_data if frame.eof else b""
                    frame = None if frame.eof else frame
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; mend it, start again") from error
    except zstandard.ZstdError:
        yield "corrupt_file"
        return
    if frame is not None:
        yield "truncated_file"
