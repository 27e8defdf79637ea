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
import resource
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

import tensorstore as ts

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.commit import FULL, check_space, existing_parent, new_checkpoint
from prts_jax.checkpoint.digests import digest_of, first_difference
from prts_jax.checkpoint.layout import PARAMS
from prts_jax.checkpoint.lineage import Digests
from prts_jax.checkpoint.tokenizer import carry_tokenizer
from prts_jax.errors import UserError, first_line
from prts_jax.growth.leaf import is_copied
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_disk.ocdbt_index import Extent, Extents, extents
from prts_jax.growth.on_disk.optimizer import OptimizerPlan, optimizer_bytes, stream_optimizer
from prts_jax.growth.on_disk.stream import (
    GrowthPlan,
    GrowthReport,
    plan,
    stream_memory,
)
from prts_jax.growth.widening import NEW
from prts_jax.paths import as_path, is_remote
from prts_jax.sizes import format_bytes

_ARRAY = "zarr.json"
_CHUNKS = "c"
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS)
"""What file systems answer that have no hard links, or not these or not so many."""


class CannotReferenceError(UserError):
    """A growth that has to be streamed; `reason` says why, in a clause."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: cannot be grown by reference: {reason}; use --mode=stream")
        self.reason = reason


def link(
    source: str, target: str, growth_map: GrowthMap, optimizer: OptimizerPlan | None = None
) -> GrowthReport:
    """Grows a checkpoint into a new one whose layers share the source's bytes.

    Values are neither read nor written, so the digests are the source's: a damaged value is found
    by whoever restores it; only files that are missing or too short are found here. What was
    written is verified: each layer points where the source's does, and Orbax finds the grown tree
    and reads the values of its smallest leaves. Killed at any moment it leaves nothing that looks
    like a checkpoint and can be run again.

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      target: directory of the new checkpoint, which must not exist.
      growth_map: a valid map from the checkpoint's model.
      optimizer: what to do about the optimizer's state, whose values are copied; None leaves it
        behind.

    Returns:
      What was done.

    Raises:
      CannotReferenceError: the checkpoint, the map, the file system or the installed version of
        the libraries does not allow it.
      UserError: see `grow.plan`; or `target` exists or is being written, or files of the source
        are missing. Nothing is left behind.
    """
    start = time.monotonic()
    work = plan(source, growth_map)
    moments_read, moments_written = optimizer_bytes(optimizer)
    target = str(as_path(target))
    reason = obstacle(work, target)
    if reason:
        raise CannotReferenceError(source, reason)
    if optimizer is not None:
        check_space(target, moments_written)
    with _expecting_layout(source):
        stored = extents(f"{source}/{PARAMS}")
        copied = _copied_chunks(work, stored)
    files = _data_files(source, stored, copied)
    with new_checkpoint(target) as directory:
        with _expecting_layout(source):
            _link_files(source, directory, files.keys() | stored.nodes)
            _point(work, directory, stored, copied)
            _check_pointers(directory, stored, copied)
        arrays.write_tree(directory, work.declarations)
        if optimizer is not None:
            stream_optimizer(optimizer, directory)
        digests = _grown_digests(work)
        bytes_read = _read_back(work, directory, digests)
        carry_tokenizer(*(f"{where}/{layout.TOKENIZER}" for where in (work.source, directory)))
        layout.write_lineage(directory, work.lineage.grown(growth_map, digests))
    return GrowthReport(
        mode="reference",
        seconds=time.monotonic() - start,
        bytes_read=bytes_read + moments_read,
        bytes_written=moments_written,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        layers=growth_map.layers,
        files_linked=len(files),
        bytes_linked=sum(files.values()),
    )


def obstacle(work: GrowthPlan, target: str) -> str:
    """Returns why a growth cannot be done by reference, "" where nothing speaks against it.

    Args:
      work: the growth.
      target: absolute path or gs:// address of the new checkpoint.
    """
    if is_remote(work.source) or is_remote(target):
        return "an object store has no hard links"
    if work.growth_map.zeroed:
        return f"{work.growth_map.operator} makes layers with zero outputs, which the source lacks"
    if NEW in work.growth_map.layers:
        return f"{work.growth_map.operator} makes new layers, which the source lacks"
    for path, declaration in work.declarations.items():
        if not is_copied(work.growth_map, declaration):
            return f"{path} changes its values, and only whole layers can be shared"
        leaf = work.stored[path]
        first = 1 if declaration.stacked else 0
        ours = leaf.shape[first:], leaf.dtype.name
        if ours != (declaration.shape[first:], declaration.dtype):
            return f"{path} changes its shape or dtype, and only whole layers can be shared"
        if declaration.stacked and leaf.shard[0] != 1:
            return (
                f"{path} is stored in pieces of {leaf.shard[0]} layers, not of one; streaming it "
                f"takes about {format_bytes(stream_memory(work))} of memory"
            )
    if os.stat(f"{work.source}/{PARAMS}").st_dev != os.stat(existing_parent(target)).st_dev:
        return f"{target} is on another file system"
    return ""


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
        for code in FULL:
            if os.strerror(code) in str(error):
                raise OSError(code, os.strerror(code)) from error
        reason = first_line(error)
        raise CannotReferenceError(
            source, f"its files are not laid out as known ({type(error).__name__}: {reason})"
        ) from error


def _copied_chunks(work: GrowthPlan, stored: Extents) -> dict[str, str]:
    """Returns key in the target → key in the source, for the chunks of all leaves."""
    chunks = defaultdict(list)
    for key in stored.values:
        folder, _, chunk = key.partition("/")
        if chunk != _ARRAY:
            chunks[f"{folder}/"].append(chunk.split("/"))
    copies = defaultdict(list)
    for at, layer in enumerate(work.growth_map.layers):
        copies[str(layer)].append(str(at))
    copied: dict[str, str] = {}
    for path, declaration in work.declarations.items():
        folder = arrays.folder_in_database(path)
        if len(chunks[folder]) != work.stored[path].shards:
            raise ValueError(f"{path} is stored in {len(chunks[folder])} pieces")
        for kind, *place in chunks[folder]:
            if kind != _CHUNKS:
                raise ValueError(f"{folder}{kind} is no chunk of a zarr array")
            places = [place]
            if declaration.stacked:
                places = [[at, *place[1:]] for at in copies[place[0]]]
            key = "/".join([folder + kind, *place])
            copied |= {"/".join([folder + kind, *at]): key for at in places}
    return copied


def _data_files(source: str, stored: Extents, copied: Mapping[str, str]) -> dict[str, int]:
    """Returns the files with the values that are used, and their sizes, after a check of both."""
    ends: dict[str, int] = {}
    for key in copied.values():
        value = stored.values[key]
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


def _link_files(source: str, directory: str, files: set[str]) -> None:
    for file in files:
        path = f"{directory}/{PARAMS}/{file}"
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.link(f"{source}/{PARAMS}/{file}", path)


def _point(work: GrowthPlan, directory: str, stored: Extents, copied: Mapping[str, str]) -> None:
    """Writes the target's database: pointers into the linked files, and the arrays' new shapes."""
    # Pointers can be copied only within one context, between databases over the same files: so
    # the source's is opened over the links, with nothing but its own manifest.
    context = ts.Context()
    source = {"driver": "file", "path": f"{work.source}/{PARAMS}/"}
    linked = {"driver": "ocdbt", "base": {"driver": "file", "path": f"{directory}/{PARAMS}/"}}
    documents = ts.KvStore.open({"driver": "ocdbt", "base": source}, context=context).result()
    old = ts.KvStore.open(linked | {"manifest": source}, context=context).result()
    new = ts.KvStore.open(linked | {"config": stored.config}, context=context).result()
    exactly = ts.KvStore.KeyRange("", "\0")
    with ts.Transaction(atomic=True) as transaction:
        writing = new.with_transaction(transaction)
        tasks: list[ts.Future] = [
            (old / key).experimental_copy_range_to(writing / at, exactly)
            for at, key in copied.items()
        ]
        for path, declaration in work.declarations.items():
            key = arrays.folder_in_database(path) + _ARRAY
            array = json.loads(documents[key])
            array["shape"] = list(declaration.shape)
            tasks.append(writing.write(key, json.dumps(array).encode()))
        for task in tasks:
            task.result()


def _check_pointers(directory: str, stored: Extents, copied: Mapping[str, str]) -> None:
    """Compares where the target's chunks lie with where they should."""
    found = extents(f"{directory}/{PARAMS}").values
    chunks = {key: value for key, value in found.items() if not key.endswith(f"/{_ARRAY}")}
    for key in sorted(chunks.keys() | copied.keys()):
        expected = stored.values[copied[key]] if key in copied else None
        if chunks.get(key) != expected:
            raise ValueError(f"{key} does not point at the source's bytes")


def _grown_digests(work: GrowthPlan) -> Digests:
    return {
        path: tuple(work.lineage.digests[path][layer] for layer in work.growth_map.layers)
        if declaration.stacked
        else work.lineage.digests[path]
        for path, declaration in work.declarations.items()
    }


def _read_back(work: GrowthPlan, directory: str, digests: Digests) -> int:
    """Reads the target's tree and smallest leaves through Orbax; returns the bytes of their values.

    Raises:
      CannotReferenceError: Orbax does not find what was meant.
    """
    from prts_jax.checkpoint import store  # Orbax takes seconds to import; all else does without

    def smallest(stacked: bool) -> list[str]:
        paths = [path for path, leaf in work.declarations.items() if leaf.stacked == stacked]
        return sorted(paths, key=lambda path: math.prod(work.declarations[path].shape))[:1]

    try:
        values = store.read_leaves(
            directory, work.declarations, smallest(stacked=True) + smallest(stacked=False)
        )
    except UserError as error:
        raise CannotReferenceError(work.source, f"Orbax does not read it ({error})") from error
    found = {
        path: tuple(map(digest_of, value if work.declarations[path].stacked else value[None]))
        for path, value in values.items()
    }
    damaged = first_difference({path: digests[path] for path in found}, found)
    if damaged:
        raise UserError(
            f"{work.source}: {damaged}: is not what was saved (digests differ); the files are "
            "damaged, use another checkpoint"
        )
    return sum(value.nbytes for value in values.values())
