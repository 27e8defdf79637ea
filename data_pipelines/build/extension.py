"""Extension of a finished store: its shards begin the new one, linked or copied."""

import os
import shutil
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from etils import epath

from data_pipelines.store.checksums import BLOCK, CHECKSUMS, CRC_DTYPE, Digests, blocks
from data_pipelines.store.files import Files, open_files
from data_pipelines.store.index import file_sizes, open_checked, read_index
from data_pipelines.store.writer import TEMPORARY, Shard
from prts_jax.errors import UserError
from prts_jax.paths import as_path, is_remote, sync

READ_BYTES = 1 << 24  # at once
SAME = ("task", "split", "tokenizer_sha256", "vocab_size", "eos_id", "layout", "packing")
"""Keys of the identity in which a store and its extension must agree."""


@dataclass(frozen=True)
class Base:
    """A finished store that another one extends; small, because it is sent to every worker."""

    directory: str
    fingerprint: str
    shards: int
    sources: tuple[str, ...]

    @classmethod
    def open(
        cls, directory: str, identity: Mapping[str, Any], names: Sequence[str], sizes: Sequence[int]
    ) -> "Base":
        """Opens the store, and checks that files may extend it.

        `identity` is that of a store of the new files alone, `names` and `sizes` are theirs.

        Raises:
          UserError: the store is damaged, was made otherwise, or has one of the files.
        """
        index = {"layout": "mixed", **read_index(directory)}
        open_checked(directory, index)
        theirs, ours = ({**of, **of.get("packing", {})} for of in (index, identity))
        for key in (*identity.get("packing", {}), *SAME):
            if theirs.get(key) != ours.get(key):
                raise UserError(
                    f"--extend={directory}: its {key} is {theirs.get(key)!r:.80}, not the new "
                    f"files' {ours.get(key)!r:.80}; a store is extended with the same task, "
                    "tokenizer, layout and packing"
                )
        names_of_shards = [shard["name"] for shard in index["shards"]]
        if names_of_shards != [f"shard-{number:05d}" for number in range(len(names_of_shards))]:
            raise UserError(f"--extend={directory}: its shards are not numbered from 0")
        both = _in_both(index, names, sizes)
        if both:
            more = f" and {len(both) - 1:,} more" if len(both) > 1 else ""
            raise UserError(
                f"--extend={directory}: already has {both[0]}{more}; give new files alone, "
                "under other names"
            )
        sources = tuple(index["sources"])
        return cls(directory, index["fingerprint"], len(index["shards"]), sources)

    def inputs(self) -> list[str]:
        """Returns the names of the input files."""
        return list(read_index(self.directory)["inputs"])

    def adopt(self, folder: epath.Path) -> None:
        """Puts the files of all shards into a folder; those that are there already stay.

        A local file is a hard link where the disk allows it: a build never writes into a file.

        Raises:
          OSError: the disk is full or fails.
        """
        index = read_index(self.directory)
        sizes = [file_sizes(shard, index["vocab_size"]) for shard in index["shards"]]
        present = open_files(os.fspath(folder)).sizes()
        missing = [
            name
            for of_shard in sizes
            for name, size in of_shard.items()
            if present.get(name) != size
        ]
        source = as_path(self.directory)
        open_files(os.fspath(folder)).map(lambda name: _put(source / name, folder / name), missing)

    def entries(self, sources: int) -> Iterator[Shard]:
        """Yields the shards for the index of a store whose `sources` begin with this one's."""
        index = read_index(self.directory)
        files = open_files(self.directory)
        zeros = (0,) * (sources - len(index["sources"]))
        checksums = _checksums(index, files)
        for entry in index["shards"]:
            shard = Shard.from_json(entry)
            counts = {
                name: counts + zeros
                for name in ("tokens_per_source", "documents_per_source", "bytes_per_source")
                if (counts := getattr(shard, name))
            }
            yield replace(shard, checksums=next(checksums), **counts)


def _in_both(index: Mapping[str, Any], names: Sequence[str], sizes: Sequence[int]) -> Sequence[str]:
    """Returns the files that a store has: those of equal name, or of equal size and name's end.

    Names begin at the common folder of a command's files, so one file may have several.
    """
    theirs = defaultdict[str, list[tuple[tuple[str, ...], int]]](list)
    for shard in index["shards"]:
        parts = PurePosixPath(shard["source_file"]).parts
        theirs[parts[-1]].append((parts, shard["source_bytes"]))

    def has(name: str, size: int) -> bool:
        parts = PurePosixPath(name).parts
        return any(
            parts == other
            or (size == other_size and all(map(str.__eq__, parts[::-1], other[::-1])))
            for other, other_size in theirs[parts[-1]]
        )

    return [name for name, size in zip(names, sizes, strict=True) if has(name, size)]


def _put(source: epath.Path, target: epath.Path) -> None:
    """Links or copies a file, whole or not at all."""
    if is_remote(target):
        if is_remote(source):
            source.copy(target, overwrite=True)
        else:
            target.write_bytes(source.read_bytes())
        return
    temporary = target.with_name(f"{target.name}.{os.getpid()}-{threading.get_ident()}{TEMPORARY}")
    try:
        try:
            os.link(source, temporary)
        except OSError:  # another disk, one without links, or gs://
            if is_remote(source):
                temporary.write_bytes(source.read_bytes())
            else:
                shutil.copyfile(source, temporary)
            sync(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _checksums(index: Mapping[str, Any], files: Files) -> Iterator[dict[str, str]]:
    """Yields each shard's checksums by suffix; those that an older store lacks are computed."""
    sizes = [file_sizes(shard, index["vocab_size"]) for shard in index["shards"]]
    if index.get("checksums", {}).get("block") == BLOCK:
        count = sum(blocks(size) for of_shard in sizes for size in of_shard.values())
        crcs, at = files.whole(CHECKSUMS, CRC_DTYPE, count), 0
        for of_shard in sizes:
            of_file = {}
            for name, size in of_shard.items():
                of_file[name.rpartition(".")[2]] = crcs[at : at + blocks(size)].tobytes().hex()
                at += blocks(size)
            yield of_file
        return
    for of_shard in sizes:
        of_file = {}
        for name, size in of_shard.items():
            digests = Digests()
            for start in range(0, size, READ_BYTES):
                stop = min(start + READ_BYTES, size)
                digests.update(files.read(name, np.dtype("u1"), start, stop).tobytes())
            of_file[name.rpartition(".")[2]] = digests.crcs.hex()
        yield of_file
