"""Streaming growth: checkpoint → checkpoint, one layer of one leaf in memory at a time."""

import dataclasses
import functools
import math
import os
import resource
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from prts_jax.checkpoint import layout, leaves
from prts_jax.checkpoint.commit import new_checkpoint
from prts_jax.checkpoint.digest import LayerDigest, digest_of
from prts_jax.checkpoint.leaves import StoredLeaf
from prts_jax.checkpoint.lineage import Digests, Lineage
from prts_jax.errors import UserError
from prts_jax.growth.leaf import fresh_layers, grow_layers, is_copied
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.widening import NEW
from prts_jax.model.declaration import Declaration
from prts_jax.model.llama import declare
from prts_jax.paths import as_path, is_remote
from prts_jax.sizes import format_bytes

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
        written += math.prod(declaration.shape) * np.dtype(declaration.dtype).itemsize
        if not declaration.stacked:
            read += stored[path].nbytes
        elif copies := _copies(growth_map, declaration):
            read += stored[path].nbytes // stored[path].shape[0] * len(copies)
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
    that comes from it, widened where the map widens it (a leaf without layers at once); zero
    outputs are written without reading. The grown checkpoint has no optimizer state; its lineage
    continues the source's.
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
    """Grows all leaves, several layers at a time where cores and memory allow it.

    Returns:
      The digests of the grown leaves.
    """
    done = 0
    digests = {
        path: [""] * (declaration.shape[0] if declaration.stacked else 1)
        for path, declaration in work.declarations.items()
    }
    with ThreadPoolExecutor(_workers(work)) as pool:
        tasks = [
            pool.submit(task)
            for path in work.declarations
            for task in _leaf_tasks(work, directory, path, digests[path])
        ]
        try:
            for task in as_completed(tasks):
                done += task.result()
                progress(done, work.bytes_written)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {path: tuple(layers) for path, layers in digests.items()}


def _copies(growth_map: GrowthMap, declaration: Declaration) -> dict[int, list[int]]:
    """Returns source layer → target layers that come from it in a stacked leaf.

    Zero outputs and new layers come from none.
    """
    zeroed = set(growth_map.zeroed) if declaration.writes_stream else set()
    copies: dict[int, list[int]] = {}
    for at, layer in enumerate(growth_map.layers):
        if at not in zeroed and layer != NEW:
            copies.setdefault(layer, []).append(at)
    return dict(sorted(copies.items()))


def _workers(work: GrowthPlan) -> int:
    return max(1, min(os.cpu_count() or 1, MEMORY_BUDGET // (3 * _largest_piece(work))))


def _largest_piece(work: GrowthPlan) -> int:
    """Returns the size of what is grown at once: a layer, or a chunk of an unstacked leaf.

    Layers that share a chunk are read together.
    """
    return max(_piece_bytes(work, path) for path in work.declarations)


def _piece_bytes(work: GrowthPlan, path: str) -> int:
    declaration = work.declarations[path]
    layer = declaration.shape[1:] if declaration.stacked else declaration.shape
    shape: tuple[int, ...] = layer
    if not is_copied(work.growth_map, declaration):
        # The source's, the target's, and as much again while it is computed.
        shape = (2, *layer)
    elif path in work.stored:
        chunk = work.stored[path].chunk
        shape = (chunk[0], *layer) if declaration.stacked else chunk
    return math.prod(shape) * np.dtype(declaration.dtype).itemsize


def _leaf_tasks(
    work: GrowthPlan, directory: str, path: str, digests: list[str]
) -> Iterator[Callable[[], int]]:
    """Yields functions that grow a part of a leaf and return the bytes they wrote.

    Each fills its places in `digests`.
    """
    declaration = work.declarations[path]
    if not declaration.stacked:
        yield _whole_leaf_task(work, directory, path, digests)
        return
    grow = _widener(work, path)
    target = leaves.create_leaf(directory, path, declaration, (1, *declaration.shape[1:]))
    copies = _copies(work.growth_map, declaration)
    if copies:
        source = leaves.open_leaf(work.source, path)
    for layer, targets in copies.items():

        def copy(layer: int = layer, targets: list[int] = targets) -> int:
            expected = work.lineage.digests[path][layer]
            values = _read(work.source, f"{path}, layer {layer}", source[layer], expected)
            if grow is None:
                return _write(target, values, targets, digests, expected)
            return sum(_write(target, grow(values, at), [at], digests) for at in targets)

        yield copy
    yield from _blank_tasks(work, target, path, digests)


def _whole_leaf_task(
    work: GrowthPlan, directory: str, path: str, digests: list[str]
) -> Callable[[], int]:
    """Returns the function that grows a leaf without layers: in blocks where it only is copied."""
    stored, declaration = work.stored[path], work.declarations[path]
    source, expected = leaves.open_leaf(work.source, path), work.lineage.digests[path][0]
    grow = _widener(work, path)
    if grow is None:
        digests[0] = expected
        target = leaves.create_leaf(directory, path, declaration, stored.chunk)
        return lambda: _copy_blocks(work.source, path, source, target, stored, expected)
    target = leaves.create_leaf(directory, path, declaration, _rows_of(stored, declaration))

    def widen() -> int:
        values = _read(work.source, path, source, expected)
        return _write(target, grow(values, 0), [...], digests)

    return widen


def _blank_tasks(
    work: GrowthPlan, target: Any, path: str, digests: list[str]
) -> Iterator[Callable[[], int]]:
    """Yields functions that write the layers that come from no source layer."""
    growth_map, declaration = work.growth_map, work.declarations[path]
    zeroed = list(growth_map.zeroed) if declaration.writes_stream else []
    if zeroed:
        # Written out, not left to the fill value: a whole checkpoint has every chunk.
        zeros = np.zeros(declaration.shape[1:], declaration.dtype)
        yield functools.partial(_write, target, zeros, zeroed, digests)

    @jax.jit
    def fresh(at: jax.Array) -> jax.Array:
        return fresh_layers(growth_map, path, declaration, at[None])[0]

    for at, layer in enumerate(growth_map.layers):
        if layer == NEW and at not in zeroed:

            def draw(at: int = at) -> int:
                return _write(target, np.asarray(fresh(np.int32(at))), [at], digests)

            yield draw


def _widener(work: GrowthPlan, path: str) -> Callable[[np.ndarray, int], np.ndarray] | None:
    """Returns (source layer, target layer's index) → target layer; None where they are equal."""
    declaration = work.declarations[path]
    if is_copied(work.growth_map, declaration):
        return None

    @jax.jit
    def grow(values: jax.Array, at: jax.Array) -> jax.Array:
        return grow_layers(values[None], work.growth_map, path, declaration, at[None])[0]

    return lambda values, at: np.asarray(grow(values, np.int32(at)))


def _rows_of(stored: StoredLeaf, declaration: Declaration) -> tuple[int, ...]:
    """Returns a chunk of whole rows, about as large as the source's."""
    row = math.prod(declaration.shape[1:])
    return (
        max(1, min(declaration.shape[0], math.prod(stored.chunk) // row)),
        *declaration.shape[1:],
    )


def _read(checkpoint: str, where: str, source: Any, digest: str) -> np.ndarray:
    """Reads a layer, or a leaf without layers, and compares its digest."""
    try:
        values: np.ndarray = source.read().result()
    except Exception as error:
        raise leaves.unreadable(checkpoint, where, error) from error
    if digest_of(values) != digest:
        raise _damaged(checkpoint, where)
    return values


def _write(
    target: Any, values: np.ndarray, places: Sequence[Any], digests: list[str], digest: str = ""
) -> int:
    """Writes a layer to its places, notes its digest, and returns the bytes written."""
    digest = digest or digest_of(values)
    for at in places:  # one after the other: each write in flight holds a copy of the layer
        target[at].write(values, can_reference_source_data_indefinitely=True).result()
        digests[0 if at is ... else at] = digest
    return int(values.nbytes) * len(places)


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
    # A model without layers stores none of their leaves.
    declared = {path: leaf for path, leaf in declared.items() if math.prod(leaf.shape)}
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
            f"{target}: needs {format_bytes(needed)} and {format_bytes(free)} are free; free space "
            "or choose another disk"
        )
