"""Streaming growth: checkpoint → checkpoint, one layer of one leaf in memory at a time."""

import dataclasses
import functools
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import numpy as np

from prts_jax.checkpoint import layout, leaves
from prts_jax.checkpoint.commit import new_checkpoint
from prts_jax.checkpoint.digest import LayerDigest, digest_of
from prts_jax.checkpoint.leaves import StoredLeaf
from prts_jax.checkpoint.lineage import Digests, Lineage
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.model.declaration import Declaration
from prts_jax.model.llama import declare
from prts_jax.paths import as_path, is_remote

MEMORY_BUDGET = 2**30
"""Bytes that layers in flight may take; a layer being copied holds about three times its size."""

Progress = Callable[[int, int], None]
"""Called with bytes written so far and in all."""


@dataclass(frozen=True)
class GrowthPlan:
    """What a growth will do, checked but not begun.

    Attributes:
      source: the source checkpoint.
      lineage: of the source.
      growth_map: what is applied.
      stored: path → the source's leaf on disk.
      declarations: path → the target's leaf.
      bytes_read: bytes of values that will be read.
      bytes_written: bytes of values that will be written.
    """

    source: str
    lineage: Lineage
    growth_map: GrowthMap
    stored: dict[str, StoredLeaf]
    declarations: dict[str, Declaration]
    bytes_read: int
    bytes_written: int


@dataclass(frozen=True)
class GrowthReport:
    """What a growth did.

    Attributes:
      mode: how: "stream" or "reference".
      seconds: wall time.
      bytes_read: bytes of values read.
      bytes_written: bytes of values written.
      peak_rss_bytes: largest memory of the process so far.
      layers: source layer of each target layer.
      files_linked: data files that the new checkpoint shares with its source.
      bytes_linked: size of these files.
      reason: why it was streamed although sharing files would be faster; "" if it was asked for.
    """

    mode: str
    seconds: float
    bytes_read: int
    bytes_written: int
    peak_rss_bytes: int
    layers: tuple[int, ...]
    files_linked: int = 0
    bytes_linked: int = 0
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the report as JSON would hold it."""
        return dataclasses.asdict(self) | {"layers": list(self.layers)}


def plan(source: str, growth_map: GrowthMap) -> GrowthPlan:
    """Checks that a checkpoint can be grown by a map, and counts the bytes.

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      growth_map: a valid map from the checkpoint's model.

    Raises:
      UserError: the checkpoint is of another model than the map's source (names the key), or
        holds other leaves than its config says (names the leaf and both shapes).
    """
    lineage = layout.read_lineage(source)
    _check_source(source, lineage, growth_map)
    stored = leaves.describe(source)
    _check_leaves(source, stored, declare(growth_map.source))
    targets = declare(growth_map.target)
    read = written = 0
    for path, declaration in targets.items():
        leaf = stored[path]
        if declaration.stacked:
            layer_bytes = leaf.nbytes // leaf.shape[0]
            read += layer_bytes * len(_copies(growth_map, declaration))
            written += layer_bytes * len(growth_map.layers)
        else:
            read += leaf.nbytes
            written += leaf.nbytes
    return GrowthPlan(source, lineage, growth_map, stored, targets, read, written)


def free_bytes(target: str) -> int | None:
    """Returns the free space where `target` will be; None where nobody can tell (gs://)."""
    return None if is_remote(target) else shutil.disk_usage(existing_parent(target)).free


def existing_parent(target: str) -> str:
    """Returns the innermost directory around a local `target` that exists."""
    parent = os.path.dirname(str(as_path(target)))
    while not os.path.isdir(parent):
        parent = os.path.dirname(parent)
    return parent


def stream_memory(work: GrowthPlan) -> int:
    """Returns about how many bytes of memory streaming takes for values."""
    return 3 * _largest_piece(work) * _workers(work)


def stream(
    source: str, target: str, growth_map: GrowthMap, *, progress: Progress | None = None
) -> GrowthReport:
    """Grows a checkpoint into a new one with the memory of about one layer.

    Each source layer is read once, compared with its digest, and written to every target layer
    that copies it; zero outputs are written without reading. The grown checkpoint has no optimizer
    state; its lineage continues the source's.
    Killed at any moment it leaves nothing that looks like a checkpoint and can be run again.

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      target: directory of the new checkpoint, which must not exist.
      growth_map: a valid map from the checkpoint's model.
      progress: told of every layer written.

    Returns:
      What was done.

    Raises:
      UserError: see `plan`; or `target` exists, the disk is too small, another process writes
        there, or a source layer is damaged (names the leaf and the layer). Nothing is left behind.
    """
    start = time.monotonic()
    work = plan(source, growth_map)
    target = str(as_path(target))
    _check_space(target, work.bytes_written)
    with new_checkpoint(target) as directory:
        digests = _copy(work, directory, progress or (lambda done, total: None))
        leaves.write_tree(directory, work.declarations)
        layout.write_lineage(directory, work.lineage.grown(growth_map, digests))
    return GrowthReport(
        mode="stream",
        seconds=time.monotonic() - start,
        bytes_read=work.bytes_read,
        bytes_written=work.bytes_written,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        layers=growth_map.layers,
    )


def _copy(work: GrowthPlan, directory: str, progress: Progress) -> Digests:
    """Copies all leaves, several at a time where cores and memory allow it."""
    done = 0
    with ThreadPoolExecutor(_workers(work)) as pool:
        tasks = [
            pool.submit(task)
            for path, declaration in work.declarations.items()
            for task in _leaf_tasks(work, directory, path, declaration)
        ]
        try:
            for task in as_completed(tasks):
                done += task.result()
                progress(done, work.bytes_written)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {path: _digests(work, path, d) for path, d in work.declarations.items()}


def _digests(work: GrowthPlan, path: str, declaration: Declaration) -> tuple[str, ...]:
    """Returns the digests of a grown leaf: a copied layer keeps its source's."""
    found = work.lineage.digests[path]
    if not declaration.stacked:
        return found
    grown = {
        at: found[layer]
        for layer, targets in _copies(work.growth_map, declaration).items()
        for at in targets
    }
    blank = ""
    if len(grown) < len(work.growth_map.layers):
        blank = digest_of(np.zeros(declaration.shape[1:], declaration.dtype))
    return tuple(grown.get(at, blank) for at in range(len(work.growth_map.layers)))


def _copies(growth_map: GrowthMap, declaration: Declaration) -> dict[int, list[int]]:
    """Returns source layer → target layers that hold a copy of it in a stacked leaf.

    Zero outputs copy nothing.
    """
    zeroed = set(growth_map.zeroed) if declaration.writes_stream else set()
    copies: dict[int, list[int]] = {}
    for at, layer in enumerate(growth_map.layers):
        if at not in zeroed:
            copies.setdefault(layer, []).append(at)
    return dict(sorted(copies.items()))


def _workers(work: GrowthPlan) -> int:
    return max(1, min(os.cpu_count() or 1, MEMORY_BUDGET // (3 * _largest_piece(work))))


def _largest_piece(work: GrowthPlan) -> int:
    """Returns the size of what is read at once: a layer, or a chunk of an unstacked leaf.

    Layers that share a chunk are read together.
    """

    def piece_bytes(leaf: StoredLeaf, declaration: Declaration) -> int:
        shape = (leaf.chunk[0], *leaf.shape[1:]) if declaration.stacked else leaf.chunk
        return math.prod(shape) * leaf.dtype.itemsize

    return max(piece_bytes(work.stored[path], d) for path, d in work.declarations.items())


def _leaf_tasks(
    work: GrowthPlan, directory: str, path: str, declaration: Declaration
) -> Iterator[Callable[[], int]]:
    """Yields functions that copy a part of a leaf and return the bytes they wrote."""
    source = leaves.open_leaf(work.source, path)
    stored, digests = work.stored[path], work.lineage.digests[path]
    if not declaration.stacked:
        target = leaves.create_leaf(directory, path, declaration, stored.chunk)
        yield lambda: _copy_blocks(work.source, path, source, target, stored, digests[0])
        return
    target = leaves.create_leaf(directory, path, declaration, (1, *declaration.shape[1:]))
    copies = _copies(work.growth_map, declaration)
    for layer, targets in copies.items():

        def copy(layer: int = layer, targets: list[int] = targets) -> int:
            return _copy_layer(work.source, path, source, target, layer, targets, digests[layer])

        yield copy
    for at in sorted(set(range(declaration.shape[0])).difference(*copies.values())):
        yield functools.partial(_write_zeros, target, at)


def _write_zeros(target: Any, at: int) -> int:
    # Written out, not left to the fill value: a reader finds every chunk of a whole checkpoint.
    zeros = np.zeros(target.shape[1:], target.dtype.numpy_dtype)
    target[at].write(zeros, can_reference_source_data_indefinitely=True).result()
    return int(zeros.nbytes)


def _copy_layer(
    checkpoint: str,
    path: str,
    source: Any,
    target: Any,
    layer: int,
    targets: list[int],
    digest: str,
) -> int:
    try:
        values = source[layer].read().result()
    except Exception as error:
        raise leaves.unreadable(checkpoint, f"{path}, layer {layer}", error) from error
    if digest_of(values) != digest:
        raise _damaged(checkpoint, f"{path}, layer {layer}")
    for at in targets:  # one after the other: each write in flight holds a copy of the layer
        target[at].write(values, can_reference_source_data_indefinitely=True).result()
    return int(values.nbytes) * len(targets)


def _copy_blocks(
    checkpoint: str, path: str, source: Any, target: Any, stored: StoredLeaf, digest: str
) -> int:
    found = LayerDigest(stored.shape)
    for block in stored.blocks():
        try:
            values = source[block].read().result()
        except Exception as error:
            raise leaves.unreadable(checkpoint, path, error) from error
        found.update(values, tuple(box.start for box in block))
        target[block].write(values, can_reference_source_data_indefinitely=True).result()
    if found.hexdigest() != digest:
        raise _damaged(checkpoint, path)
    return stored.nbytes


def _damaged(checkpoint: str, where: str) -> UserError:
    return UserError(
        f"{checkpoint}: {where}: is not what was saved (digests differ); the files are damaged, "
        "use another checkpoint"
    )


def _check_source(source: str, lineage: Lineage, growth_map: GrowthMap) -> None:
    for field in dataclasses.fields(growth_map.source):
        stored = getattr(lineage.model, field.name)
        mapped = getattr(growth_map.source, field.name)
        if stored != mapped:
            raise UserError(
                f"{source}: model.{field.name} is {stored}, but the growth map starts from "
                f"{mapped}; make the map from the checkpoint's own config"
            )


def _check_leaves(
    source: str, stored: dict[str, StoredLeaf], declared: dict[str, Declaration]
) -> None:
    for path in sorted(stored.keys() | declared.keys()):
        if path not in stored or path not in declared:
            where = "missing on disk" if path not in stored else "not part of its model"
            raise UserError(f"{source}: {path}: is {where}; the checkpoint is damaged or foreign")
        shapes = stored[path].shape, declared[path].shape
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{source}: {path}: has shape {shapes[0]} on disk and {shapes[1]} by its config; "
                "the checkpoint is damaged"
            )
        if stored[path].dtype.name != declared[path].dtype:
            raise UserError(
                f"{source}: {path}: is {stored[path].dtype.name} on disk and "
                f"{declared[path].dtype} by its config; the checkpoint is foreign"
            )


def _check_space(target: str, needed: int) -> None:
    free = free_bytes(target)
    if free is not None and free < needed * 1.01:
        raise UserError(
            f"{target}: needs {needed / 1e9:.2f} GB and {free / 1e9:.2f} GB are free; free space "
            "or choose another disk"
        )
