"""A task without a tokenizer: documents are lines, tokens are their bytes."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_pipelines.store.writer import Encoded
from data_pipelines.text.rows import Fault
from data_pipelines.text.tokenizer import Tokenizer


class LineTask:
    """Reads every file of a folder; a line that begins with "bad" is a fault.

    Attributes:
      read: numbers of the files that were read, in order.
    """

    name = "bytes"
    split = "train"
    sources = ("odd", "even")

    def __init__(self, folder: Path, model: bytes = b"model"):
        self.files = [str(file) for file in sorted(folder.iterdir())]
        digest = hashlib.sha256(model).hexdigest()
        self.tokenizer = Tokenizer(model=model, sha256=digest, vocab_size=256, eos_id=10)
        self.read: list[int] = []

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        self.read.append(index)
        lines = Path(self.files[index]).read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            if line.startswith(b"bad"):
                yield Fault("bad_json", number)
            else:
                tokens = np.frombuffer(line, np.uint8).astype(np.int32)
                yield Encoded(tokens, len(line) % 2, len(line))


class SlowTask(LineTask):
    """Waits before each document, so that a test can kill it."""

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        for document in super().documents(index):
            time.sleep(0.05)
            yield document


def write_files(folder: Path, files: dict[str, str]) -> Path:
    """Writes text files into a new folder."""
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Returns the content of each file of a folder."""
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def silent(line: str) -> None:
    """Takes a line of progress and drops it."""
