"""Folders of plain text, JSON lines or parquet as tasks: what `prts data cache --format` reads.

A split is the folder `train` or `validation`, or the folder itself where it has neither. A set is
named by a field of each row, or is the sub-folder of the split that a file lies in.
"""

import functools
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from data_pipelines.text.inputs import glob_files
from data_pipelines.text.lines import Damage, pieces
from data_pipelines.text.native import NativeTask, RowReader
from data_pipelines.text.rows import MAX_LINE_BYTES, Document, Fault, Fields, read_rows
from data_pipelines.text.tokenizer import load_tokenizer
from prts_jax.errors import UserError

MAX_SETS = 256  # a source id is a byte
SPLITS = ("train", "validation")
ENDINGS = {
    "text": (".txt", ".md", ".txt.gz", ".md.gz", ".txt.zst", ".md.zst"),
    "jsonl": (".jsonl", ".jsonl.gz", ".jsonl.zst"),
    "parquet": (".parquet",),
}
"""Format → how the names of its files end; others in the folder are no input."""


@dataclass(frozen=True)
class Format:
    """What the files of a folder are, and where a row has its text and its set.

    Attributes:
      name: of `ENDINGS`.
      text_field: of JSON lines and parquet; a dot leads into a field's fields.
      set_field: the same for the set's name; None takes the sub-folder's.
      sets: every name that `set_field` may hold; the order is that of the source ids.
    """

    name: str
    text_field: str = "text"
    set_field: str | None = None
    sets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.sets) != (self.set_field is not None):
            raise UserError(
                "--set_field and --sets go together: the field that names a row's set, and every "
                "name that it may hold"
            )
        if "" in self.sets or len({*self.sets}) < len(self.sets):
            raise UserError(f"--sets={','.join(self.sets)}: give each name once, none empty")
        if self.set_field is not None and self.name == "text":
            raise UserError("--format=text has no fields: leave --set_field out, use sub-folders")

    @property
    def endings(self) -> tuple[str, ...]:
        """How the names of its files end."""
        return ENDINGS[self.name]

    @property
    def title(self) -> str:
        """The task's name; another text makes another task."""
        if self.name == "text":
            return self.name
        return f"{self.name}:{self.text_field}" + (f",{self.set_field}" if self.set_field else "")

    @property
    def reader(self) -> RowReader:
        """What reads a file."""
        if self.name == "text":
            return read_text
        fields = Fields(self.text_field, self.set_field)
        if self.name == "jsonl":
            return functools.partial(read_rows, fields=fields)
        from data_pipelines.text.parquet import read_parquet

        return functools.partial(read_parquet, fields=fields)


def splits_of(directory: str | os.PathLike[str], form: Format) -> dict[str, list[str]]:
    """Returns the files of each split that has a folder of its own with some; they are listed once.

    Args:
      directory: local or gs://.
      form: what lies there.
    """
    found = {split: files_of(os.path.join(directory, split), form) for split in SPLITS}
    return {split: files for split, files in found.items() if files}


def open_folder(
    directory: str | os.PathLike[str],
    split: str,
    form: Format,
    tokenizer: str | os.PathLike[str],
) -> NativeTask:
    """Returns the task over a folder's files.

    Args:
      directory: local or gs://; read with its sub-folders.
      split: `train` or `validation`; in a folder without such folders, the name of all of it.
      form: what lies there.
      tokenizer: a SentencePiece model.

    Raises:
      UserError: no such file there, more sets than a store has, or a tokenizer that cannot be read.
    """
    # The sets are those of every split, so that a source id means the same in each.
    if by_split := splits_of(directory, form):
        sets = {
            name: [set_of(file, os.path.join(directory, name), form.name) for file in files]
            for name, files in by_split.items()
        }
    else:
        by_split = {split: files_of(directory, form)}
        sets = {split: [set_of(file, directory, form.name) for file in by_split[split]]}
    files = by_split.get(split)
    if not files:
        raise UserError(
            f"no text found: {os.path.join(directory, split)} and {directory} have no file "
            f"*{', *'.join(form.endings)}; give --input the folder that holds them"
        )
    sources = form.sets or tuple(sorted({name for names in sets.values() for name in names}))
    if len(sources) > MAX_SETS:
        raise UserError(f"{len(sources)} sets in {directory}: a store has at most {MAX_SETS}")
    return NativeTask(
        name=form.title,
        split=split,
        files=tuple(files),
        sources=sources,
        chosen=frozenset(sources),
        tokenizer=load_tokenizer(tokenizer),
        read=form.reader,
        file_sets=() if form.sets else tuple(sets[split]),
    )


def files_of(folder: str | os.PathLike[str], form: Format) -> list[str]:
    """Returns the files below a folder, local or gs://, that are of a format, in order."""
    return [file for file in glob_files(folder, "**/*") if file.endswith(form.endings)]


def set_of(file: str, folder: str | os.PathLike[str], without: str) -> str:
    """Returns the sub-folder that a file of `folder` lies in, `without` where it lies in none."""
    first, *rest = os.path.relpath(file, folder).split(os.sep)
    return first if rest else without


def read_text(
    path: str, sets: Collection[str] | None = None, max_text_bytes: int = MAX_LINE_BYTES
) -> Iterator[Document | Fault]:
    """Yields a file's whole text as one document, or what is wrong with it.

    Args:
      path: local or gs://; `.zst`, `.gz` or plain.
      sets: not asked, as a text does not name its set.
      max_text_bytes: a longer file is a fault and is never held in memory.

    Raises:
      UserError: the file cannot be opened or read.
    """
    content: list[bytes] = []
    size = 0
    for piece in pieces(path):
        if isinstance(piece, Damage):
            yield Fault(piece, 1)
            return
        size += len(piece)
        if size > max_text_bytes:
            yield Fault("enormous_line", 1)
            return
        content.append(piece)
    try:
        text = b"".join(content).decode()
    except UnicodeDecodeError as error:
        yield Fault("invalid_utf8", b"".join(content)[: error.start].count(b"\n") + 1, error.reason)
        return
    yield Document(text, None) if text else Fault("empty_text", 1)
