"""Growth by reference: new layers point at the bytes of the source's, and no value is copied.

A checkpoint's values lie in data files that never change once written, and its database says which
bytes of which file each layer is. So the grown checkpoint gets hard links to these files and a
database of its own. That takes a fraction of a second at any size and next to no space, and
survives the deletion of the source; but what damages a shared file damages both checkpoints.
"""

import contextlib
import errno
import json
import math
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

import tensorstore as ts

from prts_jax.checkpoint import arrays
from prts_jax.checkpoint.commit import existing_parent
from prts_jax.checkpoint.digests import digest_of, first_difference, not_what_was_saved
from prts_jax.checkpoint.layout import PARAMS
from prts_jax.checkpoint.lineage import Digests
from prts_jax.errors import FULL, UserError, first_line, os_code
from prts_jax.growth.on_disk import ocdbt_index
from prts_jax.growth.on_disk.ocdbt_index import Extent, Index
from prts_jax.growth.on_disk.plan import GrowthPlan
from prts_jax.growth.on_disk.stream import stream_memory
from prts_jax.growth.recipe import Make
from prts_jax.paths import is_remote
from prts_jax.text_table import format_bytes

_ARRAY = "zarr.json"
_CHUNKS = "c"
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
"""Errors of file systems without hard links, across two of them, and at their limit of links."""


class CannotReferenceError(UserError):
    """A growth that has to be streamed; `reason` says why, in a clause."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: cannot be grown by reference: {reason}; use --mode=stream")
        self.reason = reason


@dataclass(frozen=True)
class Shared:
    """The bytes of the source that the target will point at.

    Attributes:
      index: of the source's database.
      copied: key in the target → key in the source, for the chunks of all leaves.
      files: files with the values used → size in bytes.
    """

    index: Index
    copied: dict[str, str]
    files: dict[str, int]


@dataclass(frozen=True)
class Linked:
    """The result of growth by reference.

    Attributes:
      files: data files that the checkpoints share → size in bytes.
      bytes_read: bytes of values that were read back.
    """

    files: dict[str, int] = field(default_factory=dict)
    bytes_read: int = 0


def obstacle(work: GrowthPlan) -> str:
    """Returns why a growth cannot be done by reference; "" where every layer is an unchanged copy.

    Args:
      work: the growth.
    """
    if is_remote(work.source) or is_remote(work.target):
        return "an object store has no hard links"
    operator = work.growth_map.operator
    for make, kind in ((Make.ZERO, "layers with zero outputs"), (Make.FRESH, "new layers")):
        if any(leaf.recipe.targets(make) for leaf in work.params):
            return f"{operator} makes {kind}, which the source lacks"
    for leaf in work.params:
        recipe, stored = leaf.recipe, leaf.stored
        if not recipe.unchanged or stored is None:
            return f"{recipe.path} changes its values, and only whole layers can be shared"
        if recipe.declaration.stacked and stored.shard[0] != 1:
            return (
                f"{recipe.path} is stored in pieces of {stored.shard[0]} layers, not of one; "
                f"streaming it takes about {format_bytes(stream_memory(work, work.params))} of "
                "memory"
            )
    if os.stat(f"{work.source}/{PARAMS}").st_dev != os.stat(existing_parent(work.target)).st_dev:
        return f"{work.target} is on another file system"
    return ""


def shared_bytes(work: GrowthPlan) -> Shared:
    """Reads where the source's values lie, and checks that their files are there and long enough.

    Raises:
      CannotReferenceError: the installed libraries lay the files out in another way.
      UserError: files of the source are missing or too short.
    """
    with _expecting_layout(work.source):
        index = ocdbt_index.read_index(f"{work.source}/{PARAMS}")
        copied = _copied_chunks(work, index)
    return Shared(index, copied, _data_files(work.source, index, copied.values()))


def link(work: GrowthPlan, shared: Shared, directory: str) -> None:
    """Links the source's files into a checkpoint in the making and points new layers at them.

    Values are neither read nor written.

    Args:
      work: the growth.
      shared: from `shared_bytes`.
      directory: of the new checkpoint.

    Raises:
      CannotReferenceError: the file system makes no hard links, or a pointer went wrong.
    """
    with _expecting_layout(work.source):
        _link_files(work.source, directory, shared.files.keys() | shared.index.nodes)
        _point(work, directory, shared)
        _check_pointers(directory, shared)


def digests(work: GrowthPlan) -> Digests:
    """Returns the digests of the target: each layer's are its source layer's."""
    return {
        leaf.recipe.path: tuple(leaf.digests[layer.source] for layer in leaf.recipe.layers)
        for leaf in work.params
    }


def read_back(work: GrowthPlan, shared: Shared, directory: str, expected: Digests) -> Linked:
    """Reads the target's tree and its smallest leaves through Orbax, and compares their digests.

    A damaged value elsewhere is detected by the restore that reads it.

    Raises:
      CannotReferenceError: Orbax does not find the grown tree.
      UserError: values are not what was saved.
    """
    from prts_jax.checkpoint import restore  # Orbax takes seconds to import; all else does without

    declared = {leaf.recipe.path: leaf.recipe.declaration for leaf in work.params}

    def smallest(stacked: bool) -> list[str]:
        paths = [path for path, leaf in declared.items() if leaf.stacked == stacked]
        return sorted(paths, key=lambda path: math.prod(declared[path].shape))[:1]

    try:
        values = restore.read_leaves(
            directory, declared, smallest(stacked=True) + smallest(stacked=False)
        )
    except UserError as error:
        raise CannotReferenceError(work.source, f"Orbax does not read it ({error})") from error
    read = {
        path: tuple(map(digest_of, value if declared[path].stacked else value[None]))
        for path, value in values.items()
    }
    damaged = first_difference({path: expected[path] for path in read}, read)
    if damaged:
        raise not_what_was_saved(work.source, damaged)
    return Linked(shared.files, sum(value.nbytes for value in values.values()))


@contextlib.contextmanager
def _expecting_layout(source: str) -> Iterator[None]:
    """Turns what tensorstore and this file raise for a layout they do not know into one line.

    tensorstore raises ValueError, NotImplementedError and, for a failed read, a bare Exception.
    """
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        reason = f"the file system makes no hard links there ({error.strerror})"
        raise CannotReferenceError(source, reason) from error
    except Exception as error:
        if os_code(error) in FULL:
            raise
        reason = first_line(error)
        raise CannotReferenceError(
            source, f"its files are not laid out as known ({type(error).__name__}: {reason})"
        ) from error


def _copied_chunks(work: GrowthPlan, index: Index) -> dict[str, str]:
    """Returns key in the target → key in the source, for the chunks of all leaves."""
    chunks = defaultdict(list)
    for key in index.values:
        folder, _, chunk = key.partition("/")
        if chunk != _ARRAY:
            chunks[f"{folder}/"].append(chunk.split("/"))
    copied: dict[str, str] = {}
    for leaf in work.params:
        path, stacked = leaf.recipe.path, leaf.recipe.declaration.stacked
        targets = {str(group.source): group.targets for group in leaf.recipe.groups()}
        folder = arrays.folder_in_database(path)
        if leaf.stored is None or len(chunks[folder]) != leaf.stored.shards:
            raise ValueError(f"{path} is stored in {len(chunks[folder])} pieces")
        for kind, *position in chunks[folder]:
            if kind != _CHUNKS:
                raise ValueError(f"{folder}{kind} is no chunk of a zarr array")
            positions = [position]
            if stacked:
                positions = [[str(at), *position[1:]] for at in targets.get(position[0], ())]
            key = "/".join([folder + kind, *position])
            copied |= {"/".join([folder + kind, *copy]): key for copy in positions}
    return copied


def _data_files(source: str, index: Index, keys: Iterable[str]) -> dict[str, int]:
    """Returns the files that hold the values of these keys, and their sizes; checks both."""
    ends: dict[str, int] = {}
    for key in keys:
        value = index.values[key]
        if isinstance(value, Extent):
            ends[value.file] = max(ends.get(value.file, 0), value.offset + value.length)
    sizes = {}
    for file, end in ends.items():
        path = f"{source}/{PARAMS}/{file}"
        sizes[file] = os.path.getsize(path) if os.path.exists(path) else 0
        if sizes[file] < end:
            raise UserError(
                f"{path}: has {sizes[file]} bytes where {end} were written; the checkpoint cannot "
                "be read, use another"
            )
    return sizes


def _link_files(source: str, directory: str, files: Collection[str]) -> None:
    for file in files:
        path = f"{directory}/{PARAMS}/{file}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.link(f"{source}/{PARAMS}/{file}", path)


def _point(work: GrowthPlan, directory: str, shared: Shared) -> None:
    """Writes the target's database: pointers into the linked files, and the arrays' new shapes."""
    # Pointers can be copied only within one context, between databases over the same files: so
    # the source's is opened over the links, with nothing but its own manifest.
    context = ts.Context()
    source = {"driver": "file", "path": f"{work.source}/{PARAMS}/"}
    linked = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory}/{PARAMS}/"}}
    documents = ts.KvStore.open({"driver": "ocdbt", "base": source}, context=context).result()
    old = ts.KvStore.open(linked | {"manifest": source}, context=context).result()
    new = ts.KvStore.open(linked | {"config": shared.index.config}, context=context).result()
    exactly = ts.KvStore.KeyRange("", "\0")
    with ts.Transaction(atomic=True) as transaction:
        target = new.with_transaction(transaction)
        tasks: list[ts.Future] = [
            (old / key).experimental_copy_range_to(target / copy, exactly)
            for copy, key in shared.copied.items()
        ]
        for leaf in work.params:
            key = arrays.folder_in_database(leaf.recipe.path) + _ARRAY
            array = json.loads(documents[key])
            array["shape"] = list(leaf.recipe.declaration.shape)
            tasks.append(target.write(key, json.dumps(array).encode()))
        for task in tasks:
            task.result()


def _check_pointers(directory: str, shared: Shared) -> None:
    """Compares the locations of the target's chunks with the source's."""
    values = ocdbt_index.read_index(f"{directory}/{PARAMS}").values
    chunks = {key: value for key, value in values.items() if not key.endswith(f"/{_ARRAY}")}
    for key in sorted(chunks.keys() | shared.copied.keys()):
        expected = shared.index.values[shared.copied[key]] if key in shared.copied else None
        if chunks.get(key) != expected:
            raise ValueError(f"{key} does not point at the source's bytes")
