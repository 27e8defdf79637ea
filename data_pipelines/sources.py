"""Corpora in SlimPajama's form: where their files lie and how one is read without losing a line.

A corpus is a folder of `.jsonl.zst` files, `train/chunk*/example_train_*` and
`validation/chunk*/example_holdout_*`, with a row of JSON in each line:
`{"text": …, "meta": {"redpajama_set_name": …}}`.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import zstandard

from prts_jax.errors import UserError

TEXT_FIELD = "text"
SET_FIELD = "redpajama_set_name"
SPLIT_GLOBS = {
    "train": "train/chunk*/example_train_*.jsonl.zst",
    "validation": "validation/chunk*/example_holdout_*.jsonl.zst",
}
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Corpus:
    """A family of files with named sets.

    Attributes:
      name: the seqio task over all of it; a set's task is `{name}_{short name}`.
      sets: short name → the name in a row's `meta.redpajama_set_name`. The order is the order of
        the source ids in every store, so it never changes.
    """

    name: str
    sets: Mapping[str, str]


SLIMPAJAMA = Corpus(
    name="slimpajama",
    sets={
        "commoncrawl": "RedPajamaCommonCrawl",
        "c4": "RedPajamaC4",
        "github": "RedPajamaGithub",
        "book": "RedPajamaBook",
        "arxiv": "RedPajamaArXiv",
        "wikipedia": "RedPajamaWikipedia",
        "stackexchange": "RedPajamaStackExchange",
    },
)
SHAKESPEARE = Corpus(
    name="shakespeare",
    sets={
        "comedies": "ShakespeareComedies",
        "histories": "ShakespeareHistories",
        "tragedies": "ShakespeareTragedies",
    },
)
CORPORA = (SLIMPAJAMA, SHAKESPEARE)
EMBEDDED_SHAKESPEARE = Path(__file__).parent / "shakespeare"


@dataclass(frozen=True)
class Document:
    """One row: its text and the set it belongs to (`RedPajamaC4`, …)."""

    text: str
    set_name: str


def list_files(directory: str | os.PathLike[str], split: str) -> list[str]:
    """Returns a split's files in the order of their numbers (chunk2 before chunk10).

    Raises:
      UserError: no such split or folder, or no file in it.
    """
    if split not in SPLIT_GLOBS:
        raise UserError(f"no split {split!r}: give one of {', '.join(SPLIT_GLOBS)}")
    files = [str(path) for path in Path(directory).glob(SPLIT_GLOBS[split])]
    if not files:
        raise UserError(
            f"no text found: {Path(directory) / SPLIT_GLOBS[split]}; give the folder that holds "
            "train/ and validation/"
        )
    return sorted(files, key=_by_number)


def _by_number(path: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path)]


def read_lines(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields the lines of a `.zst` file, without their line ends; blank ones are left out.

    zstandard's own stream reader ends quietly where a truncated file ends, so the frames are
    decompressed by hand and each must reach its end.

    Raises:
      UserError: the file is missing, corrupt or truncated. Lines before the damage were yielded.
    """
    for _, line in _numbered_lines(path):
        yield line


def _numbered_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, bytes]]:
    number, rest = 0, b""
    for piece in _decompress(path):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            number += 1
            if line.strip():
                yield number, line
    if rest.strip():
        yield number + 1, rest


def _decompress(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yields the content in pieces: of every frame, for a file may hold several."""
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
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except zstandard.ZstdError as error:
        raise UserError(f"corrupt file: {path} ({error}); fetch it again") from error
    if frame is not None:
        raise UserError(f"truncated file: {path} ends within a frame; fetch it again")


def parse_document(line: bytes, where: str) -> Document:
    """Returns the document of one JSON line.

    Args:
      line: UTF-8 bytes of `{"text": …, "meta": {"redpajama_set_name": …}}`.
      where: file and line, for the message.

    Raises:
      UserError: not JSON, no text, no set name, or text that UTF-8 cannot express (a lone
        surrogate, which SentencePiece dies of).
    """
    try:
        row = json.loads(line)
        text, set_name = row[TEXT_FIELD], row["meta"][SET_FIELD]
        if not (isinstance(text, str) and isinstance(set_name, str)):
            raise TypeError("text and set name must be strings")
        text.encode()
    except KeyError as error:
        raise UserError(f"no field {error} in a row: {where}; mend or remove the line") from error
    except (ValueError, TypeError) as error:
        raise UserError(f"bad row: {where} ({error}); mend or remove the line") from error
    return Document(text=text, set_name=set_name)


def read_documents(path: str | os.PathLike[str]) -> Iterator[Document]:
    """Yields the documents of one file, in order.

    Raises:
      UserError: as `read_lines` and `parse_document`, naming file and line.
    """
    for number, line in _numbered_lines(path):
        yield parse_document(line, f"{path}, line {number}")
