"""One token store being built from one task: start, one shard per input file, finish.

While a store is built its folder holds `plan.json` (the store's identity) and, for every finished
shard, `shard-00000.json`; `index.json` replaces them at the end. A shard depends on its input file
alone, so local processes (`cache.py`) and other machines (`beam.py`) write the same bytes.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from etils import epath

from data_pipelines.build.extension import Base
from data_pipelines.build.rules import Rules
from data_pipelines.chat.packing import pack
from data_pipelines.store.fields import parse
from data_pipelines.store.files import open_files
from data_pipelines.store.index import INDEX, MAX_SETS, PADDING, file_sizes, read_index
from data_pipelines.store.writer import (
    TEMPORARY,
    Encoded,
    Shard,
    write_index,
    write_json,
    write_shard,
)
from data_pipelines.text.file_task import FileTask
from data_pipelines.text.inputs import file_version, input_sizes, relative_names
from data_pipelines.text.manifest import check_digest
from data_pipelines.text.rows import Fault
from prts_jax.errors import UserError, storage_errors
from prts_jax.paths import PathLike, as_path, exists

PLAN = "plan.json"
VERSION = "source_version"  # of a record alone: a store's bytes depend on no file's time


@dataclass(frozen=True)
class Build:
    """One store being built from one task; picklable for other processes and machines.

    Attributes:
      sizes: bytes of each input file.
      base: the store whose shards come first; None for none.
    """

    task: FileTask
    directory: str
    rules: Rules
    sizes: Sequence[int]
    base: Base | None = None

    @classmethod
    def of(cls, task: FileTask, directory: PathLike, rules: Rules) -> "Build":
        """Returns the build of a task, with the sizes of its files.

        Raises:
          UserError: a file is not there, or it cannot extend the store that `rules` names.
        """
        build = cls(task, os.fspath(directory), rules, input_sizes(task.files))
        if not rules.extends:
            return build
        if as_path(rules.extends) == as_path(directory):
            raise UserError(
                f"--extend={rules.extends}: is the --output too; give another --output, because a "
                "finished store never changes"
            )
        identity = build.identity
        base = Base.open(rules.extends, identity, identity["inputs"], build.sizes)
        return dataclasses.replace(build, base=base)

    @property
    def _folder(self) -> epath.Path:
        return as_path(self.directory)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The values that must agree for two runs to build the same store."""
        identity: dict[str, Any] = {
            "task": self.task.name,
            "split": self.task.split,
            "tokenizer_sha256": self.task.tokenizer.sha256,
            "sources": list(self._sources),
            "inputs": self._inputs,
            "layout": self.rules.layout,
            # tokenizer.json may leave them to the files beside it, and the end id to a flag.
            "vocab_size": self.task.tokenizer.vocab_size,
            "eos_id": self.task.tokenizer.eos_id,
        }
        if self.rules.packing is not None:
            # Only packed stores have it: the first stores' indices had no such key.
            identity["packing"] = dataclasses.asdict(self.rules.packing)
        if self.base is not None:
            identity["inputs"] = [*self.base.inputs(), *self._inputs]
            identity["extends"] = self.base.fingerprint
        return identity

    @cached_property
    def _inputs(self) -> list[str]:
        return relative_names(self.task.files)

    @cached_property
    def _sources(self) -> tuple[str, ...]:
        """The names of the sets: those of the base, then the task's others."""
        of_base = () if self.base is None else self.base.sources
        sources = tuple(dict.fromkeys([*of_base, *self.task.sources]))
        if len(sources) > MAX_SETS:
            raise UserError(
                f"{len(sources)} sets in {self.directory}: a store has at most {MAX_SETS}"
            )
        return sources

    @property
    def _first(self) -> int:
        """The number of the first shard that is made from an input file."""
        return 0 if self.base is None else self.base.shards

    def finished(self) -> dict[str, Any] | None:
        """Returns the index of the finished store, or None.

        Raises:
          UserError: the folder holds another store, or one with too many rows left out.
          StorageError: the folder cannot be read.
        """
        with storage_errors(f"{self.directory}: cannot be read"):
            if not exists(self._folder / INDEX):
                return None
        index = {"layout": "mixed", **read_index(self.directory)}  # the first stores had no other
        own = index["shards"][self._first :]
        sizes = [shard["source_bytes"] for shard in own]
        existing = {**index, "input sizes": sizes}
        wanted = {**self.identity, "input sizes": list(self.sizes)}
        if self.rules.digests:
            existing["checked digests"] = [s.get("source_sha256") for s in own]
            wanted["checked digests"] = [self._digest(file) for file in self.task.files]
        self._check_same(existing, wanted)
        self.rules.check([Shard.from_json(shard) for shard in own], self.directory)
        return index

    def begin(self) -> None:
        """Prepares the folder; a folder with finished shards of the same store keeps them.

        Raises:
          UserError: the folder holds part of another store.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        plan = self._folder / PLAN
        if plan.exists():
            # Plans of older versions lack the keys that were added later.
            added = {key: self.identity[key] for key in ("vocab_size", "eos_id")}
            try:
                planned = parse(plan.read_bytes())
            except ValueError as error:
                raise UserError(
                    f"damaged plan: {plan}: {error}; delete the folder {self.directory} and start "
                    "again"
                ) from error
            self._check_same({"layout": "mixed", **added, **planned}, self.identity)
        else:
            write_json(plan, self.identity)
        for name in (f"{PLAN}.*", f"{INDEX}.*", "shard-*"):
            for leftover in self._folder.glob(f"{name}{TEMPORARY}"):
                leftover.unlink()
        if self.base is not None:
            self.base.adopt(self._folder)
        tokenizer = self.task.tokenizer
        for name, content in {tokenizer.file: tokenizer.model, **tokenizer.beside}.items():
            (self._folder / name).write_bytes(content)

    def _check_same(self, existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
        different = [key for key in wanted if existing.get(key) != wanted[key]]
        if different:
            raise UserError(
                f"another store is in the way: {self.directory} differs in "
                f"{', '.join(different)}; give another --output or delete it"
            )

    def _digest(self, file: str) -> str:
        return self.rules.digests.get(file, "")

    def _record(self, index: int) -> epath.Path:
        return self._folder / f"shard-{self._first + index:05d}.json"

    def kept(self, index: int) -> Shard | None:
        """Returns a whole shard written before from the same file and as strictly, or None.

        Raises:
          UserError: the input file is not there.
        """
        try:
            entry = json.loads(self._record(index).read_bytes())
            version = entry.pop(VERSION)
            shard = Shard.from_json(entry)
        # A damaged record, or one of an older release, is ignored.
        except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
            return None
        same_input = shard.source_bytes == self.sizes[index] and version == file_version(
            self.task.files[index]
        )
        if digest := self._digest(self.task.files[index]):
            same_input = same_input and shard.source_sha256 == digest
        strict_enough = self.rules.skip_bad or not shard.bad
        has_checksums = shard.checksums.keys() == shard.sha256.keys()
        usable = same_input and strict_enough and has_checksums
        return shard if usable and self._is_whole(shard) else None

    def _is_whole(self, shard: Shard) -> bool:
        files = file_sizes(vars(shard), self.task.tokenizer.vocab_size)
        paths = {self._folder / name: size for name, size in files.items()}
        return all(path.exists() and path.stat().length == size for path, size in paths.items())

    def write(self, index: int) -> Shard:
        """Writes one shard from one file; the record, written last, marks it as whole.

        Raises:
          UserError: a bad row under --on_error=fail, or a file that cannot be read or has not the
            expected digest.
        """
        file, record = self.task.files[index], self._record(index)
        packing, tokenizer, sources = self.rules.packing, self.task.tokenizer, self._sources
        ids = {number: sources.index(name) for number, name in enumerate(self.task.sources)}
        rows, lost, bad = 0, 0, dict[str, list[int]]()

        def good() -> Iterator[Encoded]:
            nonlocal rows, lost
            for row in self.task.documents(index):
                rows += 1
                if not isinstance(row, Fault):
                    # The writer refuses a source that the task does not have.
                    yield row._replace(source=ids.get(row.source, -1)) if self.base else row
                elif self.rules.skip_bad:
                    bad.setdefault(row.kind, []).append(row.line)
                    lost += row.lost_bytes
                else:
                    raise row.error(file)

        version = file_version(file)
        if digest := self._digest(file):
            check_digest(file, digest)
        shard = write_shard(
            self._folder,
            record.stem,
            self._inputs[index],
            self.sizes[index],
            pack(good(), packing, sources.index(PADDING), tokenizer.eos_id) if packing else good(),
            tokenizer.vocab_size,
            len(sources),
            by_set=self.rules.layout == "by_set",
        )
        shard = dataclasses.replace(
            shard,
            rows=rows,
            bad=dict(sorted(bad.items())),
            lost_bytes=lost,
            source_sha256=digest,
        )
        write_json(record, {**vars(shard), VERSION: version})
        return shard

    def finish(self, shards: Sequence[Shard]) -> None:
        """Writes the index of all shards, in order, and removes the records.

        Raises:
          UserError: too many rows were bad.
        """
        self.rules.check(shards, self.directory)
        write_index(
            self._folder,
            identity=self.identity,
            vocab_size=self.task.tokenizer.vocab_size,
            eos_id=self.task.tokenizer.eos_id,
            sources=self._sources,
            shards=[*self.base.entries(len(self._sources)), *shards] if self.base else shards,
            layout=self.rules.layout,
        )
        self.clear()

    def clear(self) -> None:
        """Removes the plan and the records from a finished store."""
        plan = self._folder / PLAN
        if plan.exists():
            records = list(self._folder.glob("shard-*.json"))
            open_files(self.directory).map(lambda file: file.unlink(missing_ok=True), records)
            plan.unlink(missing_ok=True)
