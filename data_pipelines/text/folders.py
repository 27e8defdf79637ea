"""Folders of plain text, JSON lines or parquet as tasks, for `prts data cache --format`.

A split is what the names of folders or files say (`train/`, `data/train-00000-of-00001.parquet`),
or the whole folder if they say nothing. A field of each row names its set; without one, the set is
the first sub-folder that the file lies in, apart from the one that names the split.
"""

import fnmatch
import functools
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from data_pipelines.store.index import MAX_SETS, TOKENIZER_FILES
from data_pipelines.text.inputs import glob_files
from data_pipelines.text.lines import Damage, chunks, compression
from data_pipelines.text.native import NativeTask, RowReader
from data_pipelines.text.rows import MAX_LINE_BYTES, Document, Fault, Fields, read_rows
from data_pipelines.text.tokenizer import BESIDE, load_tokenizer
from prts_jax.errors import UserError
from prts_jax.paths import PathLike

SPLITS = ("train", "validation")
ENDINGS = {
    "text": (".txt", ".md"),
    "jsonl": (".jsonl", ".ndjson", ".json"),
    "parquet": (".parquet",),
}
"""Format → extensions of its files, in any case; `FRAMES` may compress text and JSON lines."""

SPLIT_WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev", "holdout"},
    "test": {"test", "testing", "eval", "evaluation"},
}
"""Split → words that name it, those of the Hugging Face hub and of SlimPajama."""


@dataclass(frozen=True)
class Format:
    """Format of a folder's files, and the fields of a row's text and set.

    Attributes:
      name: a key of `ENDINGS`.
      text_field: field of the text in JSON lines and parquet; `a.b` is field b of field a.
      set_field: field of the set's name; None uses the sub-folder's name.
      sets: every name that `set_field` may hold, in the order of the source ids.
      include: glob patterns of the files to read, on a file's name or its path below the folder;
        empty for all.
    """

    name: str
    text_field: str = "text"
    set_field: str | None = None
    sets: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

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

    def takes(self, name: str) -> bool:
        """Returns whether a file, named by its path below the folder, is read."""
        stem = name.lower()
        if compression(stem) is not None and self.name != "parquet":
            stem = os.path.splitext(stem)[0]
        return (
            stem.endswith(self.endings)
            and (not self.include or _matches(name, self.include))
            and not _matches(name, self.exclude)
        )

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


def _matches(name: str, patterns: Sequence[str]) -> bool:
    names = (name, os.path.basename(name))
    return any(fnmatch.fnmatchcase(each, pattern) for each in names for pattern in patterns)


def splits_of(directory: PathLike, form: Format) -> dict[str, list[str]]:
    """Returns the files of each split that folders or file names name; empty if none do.

    Files outside the top folders `train`, `validation`, … are left out if there are any.

    Raises:
      UserError: the names of some files name a split and those of others do not.
    """
    splits = split_files(files_of(directory, form), directory)
    return {split: splits[split] for split in SPLIT_WORDS if split in splits}


def split_files(files: Sequence[str], directory: PathLike) -> dict[str, list[str]]:
    """Returns files by the split that their paths name; see `splits_of`."""
    by_split: dict[str, list[str]] = {}
    without = []
    for file in files:
        split, _ = _named_split(os.path.relpath(file, directory))
        by_split.setdefault(split, []).append(file) if split else without.append(file)
    words = set().union(*SPLIT_WORDS.values())
    tops = {os.path.relpath(file, directory).split(os.sep)[0] for file in files}
    if by_split and without and not tops & words:
        named = next(iter(by_split))
        raise UserError(
            f"{directory} holds files of several splits: {by_split[named][0]} is {named} by its "
            f"name, {without[0]} names no split; move or rename them, or choose files with "
            "--include or --exclude"
        )
    return by_split


def _named_split(name: str) -> tuple[str | None, int]:
    """Returns the split that a path below a folder names, and the index of the part that does."""
    for index, part in enumerate(name.split(os.sep)):
        words = set(re.split(r"[^a-z]+", part.lower()))
        for split, names in SPLIT_WORDS.items():
            if words & names:
                return split, index
    return None, -1


def open_folder(
    directory: PathLike, split: str, form: Format, tokenizer: PathLike, end_id: str = ""
) -> NativeTask:
    """Returns the task over the files of a folder, local or gs://, and of its sub-folders.

    The split is `train` or `validation`, or a name for the whole folder if it has no such folders.

    Raises:
      UserError: no file of this format, too many sets for a store, or an unreadable tokenizer.
    """
    # Sets are collected over all splits, so that a source id means the same in each.
    named = splits_of(directory, form)
    if named and not form.include:
        by_split = {name: files for name, files in named.items() if name in SPLITS}
    else:
        by_split = {split: named.get(split) or files_of(directory, form)}
    sets = {
        name: [set_of(file, directory, form.name) for file in files]
        for name, files in by_split.items()
    }
    files = by_split.get(split)
    if not files:
        raise UserError(
            f"no text found: {os.path.join(directory, split)} and {directory} have no file "
            f"*{', *'.join(form.endings)} of the split {split}; give --input the folder that holds "
            "them"
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


def files_of(folder: PathLike, form: Format) -> list[str]:
    """Returns a folder's files of a format, local or gs://, in order."""
    return [file for file in _visible(folder) if form.takes(os.path.relpath(file, folder))]


def _visible(folder: PathLike) -> list[str]:
    """Returns all files but a tokenizer's and hidden ones (`.cache/…`, `_SUCCESS`)."""
    return [
        file
        for file in glob_files(folder, "**/*")
        if os.path.basename(file) not in (*TOKENIZER_FILES, *BESIDE)
        and not any(part[0] in "._" for part in os.path.relpath(file, folder).split(os.sep))
    ]


def left_out(directory: PathLike, taken: Collection[str]) -> str:
    """Returns a line that counts the files of a folder that are not read, or "" if none."""
    kept = {os.path.relpath(file, directory) for file in taken}
    names = [
        name
        for file in _visible(directory)
        if (name := os.path.relpath(file, directory)) not in kept
    ]
    if not names:
        return ""
    kinds = Counter(os.path.splitext(name)[1] or os.path.basename(name) for name in names)
    counts = ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common(8))
    return f"{directory}: {len(names):,} files are not read ({counts}); the first is {names[0]}"


def set_of(file: str, folder: PathLike, without: str) -> str:
    """Returns the sub-folder of `folder` that is a file's set, or `without` if none.

    It is the first one, or the second if the first names the split.
    """
    name = os.path.relpath(file, folder)
    _, index = _named_split(name)
    parts = name.split(os.sep)
    if index == 0:
        parts = parts[1:]
    return parts[0] if len(parts) > 1 else without


def read_text(
    path: str, sets: Collection[str] | None = None, max_text_bytes: int = MAX_LINE_BYTES
) -> Iterator[Document | Fault]:
    """Yields a file's whole text as one document, or its fault.

    A file of more than `max_text_bytes` is a fault and is never held in memory. A text does not
    name its set.

    Raises:
      UserError: the file cannot be opened or read.
    """
    content: list[bytes] = []
    size = 0
    for piece in chunks(path):
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
    yield Document(text, None, 1) if text else Fault("empty_text", 1)
