"""Rows of JSON files: one a line, or the elements of one array that is the whole file (`.json`)."""

import codecs
import itertools
import json
import os
from collections.abc import Iterator

from data_pipelines.text.inputs import input_sizes
from data_pipelines.text.lines import Damage, chunks, compression, numbered_lines
from prts_jax.paths import PathLike

SPACE = " \t\r\n"
FOLLOWING = tuple(f",]{SPACE}")  # a value
KEPT_CHARACTERS = 1 << 20  # that were read already
CUT = 12  # characters before a piece's end that its cut may spoil: of an escaped surrogate pair


def numbered_rows(path: PathLike, max_row_bytes: int) -> Iterator[tuple[int, bytes | Damage]]:
    """Yields each row's number, from 1, and its JSON; as `lines.numbered_lines`.

    A file `.json`, compressed or plain, whose first character is a bracket is one array, and its
    elements are the rows.

    Raises:
      UserError: the file cannot be opened or read.
    """
    name = os.fspath(path).lower()
    stem = os.path.splitext(name)[0] if compression(name) else name
    if not stem.endswith(".json"):
        yield from numbered_lines(path, max_row_bytes)
        return
    content = chunks(path)
    first = next(content, b"")
    if isinstance(first, Damage) or first.removeprefix(codecs.BOM_UTF8).lstrip()[:1] != b"[":
        yield from numbered_lines(path, max_row_bytes)
        return
    for number, row in _elements(itertools.chain([first], content), max_row_bytes):
        if isinstance(row, Damage):
            # Of a compressed file, an upper limit.
            row = Damage(row.kind, min(row.lost_bytes, *input_sizes([os.fspath(path)])))
        yield number, row


class _Malformed(Exception):
    """Text that is no array of JSON values."""


class _Text:
    """Text of a file from the first character that is not yet taken."""

    def __init__(self, content: Iterator[bytes | Damage]):
        self._content = content
        # Bytes that are no UTF-8 pass through, so that they spoil one row alone.
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at = "", 0
        self.damage: Damage | None = None

    def more(self, characters: int = 1) -> bool:
        """Reads at least so many more characters; returns whether any came."""
        parts, wanted = [self.text[self.at :]], characters
        while wanted > 0 and (piece := next(self._content, None)) is not None:
            if isinstance(piece, Damage):
                self.damage = piece
                break
            parts.append(self._decoder.decode(piece))
            wanted -= len(parts[-1])
        self.text, self.at = "".join(parts), 0
        return wanted < characters

    def next(self) -> str:
        """Returns the next character that is no space, without taking it; "" at the end."""
        while True:
            while self.at < len(self.text):
                if self.text[self.at] not in SPACE:
                    return self.text[self.at]
                self.at += 1
            if not self.more():
                return ""

    def value(self, max_bytes: int) -> bytes:
        """Takes a JSON value and returns its bytes.

        Raises:
          _Malformed: no JSON value.
          EOFError: the text ends within the value.
          OverflowError: the value is longer than max_bytes.
        """
        while True:
            try:
                _, end = _DECODER.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                begun = len(self.text) - error.pos <= CUT or error.msg.startswith("Unterminated")
                if not begun:
                    raise _Malformed from error
            except (ValueError, RecursionError) as error:
                raise _Malformed from error
            else:
                # A number may go on.
                if self.text[end - 1] in '}]"' or self.text[end : end + 1] in FOLLOWING:
                    value = self.text[self.at : end].encode("utf-8", "surrogateescape")
                    if len(value) > max_bytes:
                        raise OverflowError
                    self.at = end
                    return value
            held = len(self.text) - self.at
            if held > max_bytes:
                raise OverflowError
            if not self.more(max(held, KEPT_CHARACTERS)):
                raise EOFError

    def left(self) -> int:
        """Returns the bytes that are not taken."""
        rest = len(self.text[self.at :].encode("utf-8", "surrogateescape"))
        return rest + sum(len(piece) for piece in self._content if isinstance(piece, bytes))


_DECODER = json.JSONDecoder()


def _elements(
    content: Iterator[bytes | Damage], max_bytes: int
) -> Iterator[tuple[int, bytes | Damage]]:
    """Yields each element of an array, then the damage that ends the file, if any."""
    text, number = _Text(content), 1
    text.next()
    text.at += text.text.startswith("\ufeff", text.at)
    try:
        _take(text, "[")
        while text.next() != "]":
            if number > 1:
                _take(text, ",")
                text.next()
            yield number, text.value(max_bytes)
            number += 1
        text.at += 1
        if not text.next() and text.damage is None:
            return
        kind = "corrupt_file"
    except EOFError:
        kind = "truncated_file"
    except OverflowError:
        kind = "enormous_line"
    except _Malformed:
        kind = "corrupt_file"
    yield number, text.damage or Damage(kind, text.left())


def _take(text: _Text, character: str) -> None:
    following = text.next()
    if not following:
        raise EOFError
    if following != character:
        raise _Malformed
    text.at += 1
