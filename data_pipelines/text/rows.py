"""Rows of JSON lines as documents and faults; nothing is lost silently.

A row that is no document becomes a `Fault` with its kind and line, in order among the documents.
The caller decides whether a fault ends the run or is left out and counted.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from data_pipelines.text.arrays import numbered_rows
from data_pipelines.text.lines import Damage
from prts_jax.errors import UserError
from prts_jax.paths import PathLike

TEXT_FIELD = "text"
SET_FIELD = "redpajama_set_name"
MAX_LINE_BYTES = 1 << 27  # far above any book, far below memory

CHAT_FAULTS = {
    "missing_turns": "the row has neither messages, conversations, nor instruction and output",
    "bad_turn": "instruction, input and output are strings, and a message has a role and a content",
    "unknown_role": "a message's role is none of system, user and assistant",
    "bad_weight": "weight, train and loss are 0 or 1, and 1 for answers alone",
    "unsupported_field": "tools and parts of a message cannot be trained on; remove the row",
    "turns_out_of_order": "messages are an optional system, then user and assistant in turn",
    "no_answer": "no assistant answers, or an answer is empty",
    "too_long": "it does not fit into a row; give a larger --length",
}
"""Kinds of bad instruction data, and their explanation."""

FAULTS = {
    "truncated_file": "the file is empty or ends too early; fetch it again",
    "corrupt_file": "the file is damaged, and no row is taken from here on; fetch it again",
    "enormous_line": f"it is longer than {MAX_LINE_BYTES >> 20} MiB; split its document",
    "invalid_utf8": "it is not UTF-8",
    "bad_json": "the line is not a JSON object",
    "missing_text": "the row lacks the field for its text",
    "text_not_a_string": "the row's text is not a string",
    "lone_surrogate": "the text holds half of a surrogate pair, which is not a character",
    "empty_text": "the text is empty",
    "missing_set": "the row lacks the field for its set",
    "unknown_set": "the row names an unknown set",
    **CHAT_FAULTS,
}
"""Kinds of bad input, and their explanation. A store's index lists lines by these names."""

DAMAGED_FILE = ("truncated_file", "corrupt_file")
"""Kinds that end a file, or a row group of it, before its last row."""


@dataclass(frozen=True)
class Fields:
    """The fields of a row's text and of its set's name, None if rows do not name it.

    `a.b` is field b of field a.
    """

    text: str = TEXT_FIELD
    set: str | None = f"meta.{SET_FIELD}"


SLIMPAJAMA_FIELDS = Fields()


class Document(NamedTuple):
    """One row of a file.

    Attributes:
      set_name: its set (`RedPajamaC4`, …); None if the row does not name it.
      row: its line, or in parquet its row, from 1.
    """

    text: str
    set_name: str | None
    row: int


class Fault(NamedTuple):
    """A row that is no document, or the damaged rest of a file.

    Attributes:
      kind: a key of `FAULTS`.
      line: line of the decompressed file, from 1 (in parquet, the row); for a damaged file the
        first line that is lost.
      detail: the parser's message, or the unknown name.
      lost_bytes: bytes of the file, compressed, that are lost with it; 0 for a single row.
    """

    kind: str
    line: int
    detail: str = ""
    lost_bytes: int = 0

    @classmethod
    def of(cls, damage: Damage, line: int) -> "Fault":
        """Returns the fault for damage that begins at a line."""
        return cls(damage.kind, line, lost_bytes=damage.lost_bytes)

    def error(self, path: PathLike) -> UserError:
        """Returns the UserError that names file, line and remedy."""
        detail = f" ({' '.join(self.detail.split())})" if self.detail else ""
        return UserError(
            f"{self.kind}: {os.fspath(path)}, line {self.line}: {FAULTS[self.kind]}{detail}; "
            "fix it, or leave such rows out with --on_error=skip"
        )


def read_rows(
    path: PathLike,
    sets: Collection[str] | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
    fields: Fields = SLIMPAJAMA_FIELDS,
) -> Iterator[Document | Fault]:
    """Yields a file's documents and faults in order, one for each line that is not blank.

    Lines of more than `max_line_bytes` are faults and are never held in memory. With `sets` None,
    any set is known.

    Raises:
      UserError: the file cannot be opened or read from the disk.
    """
    for number, line in numbered_rows(path, max_line_bytes):
        if isinstance(line, Damage):
            yield Fault.of(line, number)
        else:
            yield known_set(parse_row(line, number, fields), number, sets)


def read_documents(path: PathLike) -> Iterator[Document]:
    """Yields the documents of one file, in order.

    Raises:
      UserError: at the first fault, naming file and line.
    """
    for row in read_rows(path):
        if isinstance(row, Fault):
            raise row.error(path)
        yield row


def parse_row(line: bytes, number: int, fields: Fields = SLIMPAJAMA_FIELDS) -> Document | Fault:
    """Returns the document of one line, `{"text": …, "meta": {"redpajama_set_name": …}}`."""
    row = parse_object(line, number)
    return row if isinstance(row, Fault) else document_of(row, number, fields)


def parse_object(line: bytes, number: int) -> dict[str, Any] | Fault:
    """Returns the JSON object of one line."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return Fault("invalid_utf8", number, error.reason)
    # A number of thousands of digits is a ValueError too, and deep nesting a RecursionError.
    except (ValueError, RecursionError) as error:
        return Fault("bad_json", number, str(error))
    if not isinstance(row, dict):
        return Fault("bad_json", number, f"a {type(row).__name__}")
    return row


def document_of(row: Mapping[str, Any], number: int, fields: Fields) -> Document | Fault:
    """Returns the document of one parsed row."""
    text = field_of(row, fields.text)
    if text is MISSING:
        return Fault("missing_text", number, fields.text)
    if not isinstance(text, str):
        return Fault("text_not_a_string", number, type(text).__name__)
    try:
        text.encode()
    except UnicodeEncodeError:
        return Fault("lone_surrogate", number)
    if not text:
        return Fault("empty_text", number)
    if fields.set is None:
        return Document(text, None, number)
    set_name = field_of(row, fields.set)
    if set_name is MISSING:
        return Fault("missing_set", number, fields.set)
    if not isinstance(set_name, str):
        return Fault("unknown_set", number, "not a string")
    return Document(text, set_name, number)


def known_set(row: Document | Fault, number: int, sets: Collection[str] | None) -> Document | Fault:
    """Returns the row, or a fault if its set is unknown."""
    if sets is None or isinstance(row, Fault) or row.set_name is None or row.set_name in sets:
        return row
    return Fault("unknown_set", number, repr(row.set_name[:80]))


MISSING = object()


def field_of(row: Mapping[str, Any], name: str) -> Any:
    """Returns a row's field, or `MISSING`; `a.b` is field b of field a."""
    if name in row:
        return row[name]
    value: Any = row
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value
