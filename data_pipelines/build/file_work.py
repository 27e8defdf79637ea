"""A token store being made: the work on one file, what comes before it and what after the last.

While a store is being made its folder holds `plan.json` (what it is made from) and, for every
finished shard, `shard-00000.json`; `index.json` takes their place at the end. Each shard depends
on its input file alone, so whoever makes it, here (`cache.py`) or on another machine (`beam.py`),
writes the same bytes.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from etils import epath

from data_pipelines.store.files import open_files
from data_pipelines.text.inputs import file_version, input_sizes, relative_names
from data_pipelines.text.native import Encoded
from data_pipelines.chat.packing import Packing, pack
from data_pipelines.text.rows import Fault
from data_pipelines.store.store import INDEX, file_sizes, read_index
from data_pipelines.store.writer import (
    TEMPORARY,
    Document,
    Shard,
    write_index,
    write_json,
    write_shard,
)
from data_pipelines.text.tokenizer import Tokenizer
from prts_jax.errors import UserError
from prts_jax.paths import as_path

PLAN = "plan.json"
VERSION = "source_version"  # of a record alone: a store's bytes depend on no file's time


class FileTask(Protocol):
    """A task as a build sees it: files in, documents of token ids out.

    To be run by several processes it must be picklable.
    """

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def split(self) -> str:
        """The split of it."""

    @property
    def files(self) -> Sequence[str]:
        """Its input files, in order."""

    @property
    def sources(self) -> Sequence[str]:
        """Names of its sets; a source id is an index into them."""

    @property
    def tokenizer(self) -> Tokenizer:
        """What its token ids mean."""

    def documents(self, index: int) -> Iterator[Encoded | Fault]:
        """Yields file `index`'s documents, and what in it is none, in order."""


@dataclass(frozen=True)
class Rules:
    """What a store leaves out, and how its documents lie.

    Attributes:
      skip_bad: leave bad rows out and list them in the index; False ends at the first.
      max_bad_fraction: share of all rows that may be left out; above it no store is made.
      layout: of `store.LAYOUTS`.
      packing: how examples become rows; None where documents follow one another.
    """

    skip_bad: bool = False
    max_bad_fraction: float = 0.001
    layout: str = "mixed"
    packing: Packing | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_fraction <= 1:
            raise UserError(f"--max_bad_fraction={self.max_bad_fraction}: give a share of 0 … 1")


STRICT = Rules()


@dataclass(frozen=True)
class Build:
    """One store being made from one task; may be sent to other processes and machines.

    Attributes:
      task: what to tokenize.
      directory: the store's folder, local or gs://.
      rules: see there.
      sizes: bytes of each input file.
    """

    task: FileTask
    directory: str
    rules: Rules
    sizes: Sequence[int]

    @classmethod
    def of(cls, task: FileTask, directory: str | os.PathLike[str], rules: Rules) -> "Build":
        """Returns the build of a task, which asks for the sizes of its files.

        Raises:
          UserError: a file is not there.
        """
        return cls(task, os.fspath(directory), rules, input_sizes(task.files))

    @property
    def _folder(self) -> epath.Path:
        return as_path(self.directory)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What must agree for two runs to be making the same store."""
        identity: dict[str, Any] = {
            "task": self.task.name,
            "split": self.task.split,
            "tokenizer_sha256": self.task.tokenizer.sha256,
            "sources": list(self.task.sources),
            "inputs": relative_names(self.task.files),
            "layout": self.rules.layout,
        }
        if self.rules.packing is not None:
            # Kept out of other stores' indices, where the first of them had none.
            identity["packing"] = dataclasses.asdict(self.rules.packing)
        return identity

    def finished(self) -> dict[str, Any] | None:
        """Returns the index if this store is already made.

        Raises:
          UserError: another store is there, or one that leaves out more than is allowed.
        """
        if not (self._folder / INDEX).exists():
            return None
        index = {"layout": "mixed", **read_index(self.directory)}  # the first stores had no other
        found = {**index, "input sizes": [shard["source_bytes"] for shard in index["shards"]]}
        self._refuse_difference(found, {**self.identity, "input sizes": list(self.sizes)})
        self._check_fraction([Shard.from_json(shard) for shard in index["shards"]])
        return index

    def begin(self) -> None:
        """Prepares the folder, or goes on with what was begun in it.

        Raises:
          UserError: it holds the beginning of another store.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        plan = self._folder / PLAN
        if plan.exists():
            found = {"layout": "mixed", **json.loads(plan.read_bytes())}
            self._refuse_difference(found, self.identity)
        else:
            write_json(plan, self.identity)
        for name in (f"{PLAN}.*", f"{INDEX}.*", "shard-*"):
            for leftover in self._folder.glob(f"{name}{TEMPORARY}"):
                leftover.unlink()
        tokenizer = self.task.tokenizer
        for name, content in {tokenizer.file: tokenizer.model, **tokenizer.beside}.items():
            (self._folder / name).write_bytes(content)

    def _refuse_difference(self, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        different = [key for key in wanted if found.get(key) != wanted[key]]
        if different:
            raise UserError(
                f"another store is in the way: {self.directory} differs in "
                f"{', '.join(different)}; give another --output or delete it"
            )

    def _record(self, index: int) -> epath.Path:
        return self._folder / f"shard-{index:05d}.json"

    def kept(self, index: int) -> Shard | None:
        """Returns a shard that was made before, from the same file and as strictly, and is whole.

        Raises:
          UserError: the input file is not there.
        """
        try:
            entry = json.loads(self._record(index).read_bytes())
            version = entry.pop(VERSION)
            shard = Shard.from_json(entry)
        # A record that cannot be read, or is of an older release, says nothing.
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        same_input = shard.source_bytes == self.sizes[index] and version == file_version(
            self.task.files[index]
        )
        strict_enough = self.rules.skip_bad or not shard.bad
        return shard if same_input and strict_enough and self._is_whole(shard) else None

    def _is_whole(self, shard: Shard) -> bool:
        files = file_sizes(vars(shard), self.task.tokenizer.vocab_size)
        paths = {self._folder / name: size for name, size in files.items()}
        return all(path.exists() and path.stat().length == size for path, size in paths.items())

    def make(self, index: int) -> Shard:
        """Makes one shard from one file; its record, written last, says that it is whole.

        Raises:
          UserError: a bad row that is not to be left out, or a file that cannot be read.
        """
        rows, truncated = 0, 0
        text_bytes: list[int] | None = [0] * len(self.task.sources)
        bad: dict[str, list[int]] = {}

        def good() -> Iterator[Encoded]:
            nonlocal rows, text_bytes, truncated
            for row in self.task.documents(index):
                rows += 1
                if isinstance(row, Fault):
                    if not self.rules.skip_bad:
                        raise row.error(self.task.files[index])
                    bad.setdefault(row.kind, []).append(row.line)
                    continue
                if row.text_bytes is None:
                    text_bytes = None
                elif text_bytes is not None:
                    text_bytes[row.source] += row.text_bytes
                truncated += row.truncated
                yield row

        packing, sources = self.rules.packing, len(self.task.sources)
        documents = good()
        if packing is not None:
            documents = pack(documents, packing, sources - 1, self.task.tokenizer.eos_id)
        record = self._record(index)
        version = file_version(self.task.files[index])
        shard = write_shard(
            self._folder,
            record.stem,
            self.identity["inputs"][index],
            self.sizes[index],
            (_parts(document) for document in documents),
            self.task.tokenizer.vocab_size,
            sources,
            by_set=self.rules.layout == "by_set",
        )
        shard = dataclasses.replace(
            shard,
            rows=rows,
            bytes_per_source=tuple(text_bytes or ()),
            bad=dict(sorted(bad.items())),
            truncated=truncated,
        )
        write_json(record, {**vars(shard), VERSION: version})
        return shard

    def finish(self, shards: Sequence[Shard]) -> None:
        """Writes the index over every shard, in order, and clears the records away.

        Raises:
          UserError: more rows were bad than may be.
        """
        self._check_fraction(shards)
        write_index(
            self._folder,
            identity=self.identity,
            vocab_size=self.task.tokenizer.vocab_size,
            eos_id=self.task.tokenizer.eos_id,
            sources=self.task.sources,
            shards=shards,
            layout=self.rules.layout,
        )
        self.clear()

    def clear(self) -> None:
        """Removes from a finished store what only its making needed."""
        plan = self._folder / PLAN
        if plan.exists():
            records = list(self._folder.glob("shard-*.json"))
            open_files(self.directory).map(lambda file: file.unlink(missing_ok=True), records)
            plan.unlink(missing_ok=True)

    def _check_fraction(self, shards: Sequence[Shard]) -> None:
        rows = sum(shard.rows for shard in shards)
        bad = [(shard, kind, lines[0]) for shard in shards for kind, lines in shard.bad.items()]
        count = sum(len(lines) for shard in shards for lines in shard.bad.values())
        allowed = self.rules.max_bad_fraction if self.rules.skip_bad else 0.0
        if count > allowed * rows:
            shard, kind, line = bad[0]
            limit = (
                f"--max_bad_fraction={allowed:g}"
                if self.rules.skip_bad
                else "--on_error=fail allows"
            )
            raise UserError(
                f"too much bad input: {count:,} of {rows:,} rows, more than {limit}; the first is "
                f"{kind} at {shard.source_file}, line {line}, all are listed in {self.directory} "
                f"({INDEX}, or shard-*.json before it is written); mend them, or start again with "
                "--on_error=skip and a larger fraction: what is made is kept"
            )


def _parts(document: Encoded) -> Document:
    if document.answers is None:
        return document.tokens, document.source
    return document.tokens, document.source, document.answers
