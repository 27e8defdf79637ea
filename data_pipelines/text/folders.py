"""Folders of plain text, JSON lines or parquet as tasks, for `prts data cache --format`.

A split is the folder `train` or `validation`, or the whole folder if it has neither. A field of
each row names its set; without one, the set is the sub-folder of the split that the file lies in.
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
"""Format → extensions of its files; other files in the folder are not read."""


@dataclass(frozen=True)
class Format:
    """Format of a folder's files, and the fields of a row's text and set.

    Attributes:
      name: a key of `ENDINGS`.
      text_field: field of the text in JSON lines and parquet; `a.b` is field b of field a.
      set_field: field of the set's name; None uses the sub-folder's name.
      sets: every name that `set_field` may hold, in the order of the source ids.
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
        """The extensions of its files."""
        return ENDINGS[self.name]

    @property
    def title(self) -> str:
        """The task's name, which includes the fields that decide its text."""
        if self.name == "text":
            return self.name
        return f"{self.name}:{self.text_field}" + (f",{self.set_field}" if self.set_field else "")

    @property
    def reader(self) -> RowReader:
        """The function that reads a file."""
        if self.name == "text":
            return read_text
        fields = Fields(self.text_field, self.set_field)
        if self.name == "jsonl":
            return functools.partial(read_rows, fields=fields)
        from data_pipelines.text.parquet import read_parquet

        return functools.partial(read_parquet, fields=fields)


def splits_of(directory: str | os.PathLike[str], form: Format) -> dict[str, list[str]]:
    """Returns the files of each split that has its own folder with files.

    Args:
      directory: local or gs://.
      form: format of the files.
    """
    splits = {split: files_of(os.path.join(directory, split), form) for split in SPLITS}
    return {split: files for split, files in splits.items() if files}


def open_folder(
    directory: str | os.PathLike[str],
    split: str,
    form: Format,
    tokenizer: str | os.PathLike[str],
    end_id: str = "",
) -> NativeTask:
    """Returns the task over a folder's files.

    Args:
      directory: local or gs://; read with its sub-folders.
      split: `train` or `validation`; the name of the whole folder if it has no such folders.
      form: format of the files.
      tokenizer: see `load_tokenizer`.
      end_id: see `load_tokenizer`.

    Raises:
      UserError: no file of this format, too many sets for a store, or an unreadable tokenizer.
    """
    # Sets are collected over all splits, so that a source id means the same in each.
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
        tokenizer=load_tokenizer(tokenizer, end_id),
        read=form.reader,
        file_sets=() if form.sets else tuple(sets[split]),
    )


def files_of(folder: str | os.PathLike[str], form: Format) -> list[str]:
    """Returns a folder's files of a format, local or gs://, in order."""
    return [file for file in glob_files(folder, "**/*") if file.endswith(form.endings)]


def set_of(file: str, folder: str | os.PathLike[str], without: str) -> str:
    """Returns the sub-folder of `folder` that a file lies in, or `without` if none."""
    first, *rest = os.path.relpath(file, folder).split(os.sep)
    return first if rest else without


def read_text(
    path: str, sets: Collection[str] | None = None, max_text_bytes: int = MAX_LINE_BYTES
) -> Iterator[Document | Fault]:
    """Yields a file's whole text as one document, or its fault.

    Args:
      path: local or gs://; compressed or plain.
      sets: not used, because a text does not name its set.
      max_text_bytes: a longer file is a fault and is never held in memory.

    Raises:
      UserError: the file cannot be opened or read.
    """
    content: list[bytes] = []
    size = 0
    for piece in pieces(path):
        if isinstance(piece, Damage):
            yield Fault.of(piece, 1)
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
