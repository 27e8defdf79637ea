"""Streaming growth: one layer of one source leaf, and every target layer that comes from it.

A job is read, grown and written in blocks of at most `plan.BLOCK_BYTES` (or of the source's chunks
where these are larger), so its memory does not depend on the size of the model. Parameters and
optimizer state go through the same queue.
"""

import functools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

import jax
import numpy as np

from prts_jax.checkpoint import arrays
from prts_jax.checkpoint.damage import reading
from prts_jax.checkpoint.digests import LayerDigest, digest_of, not_what_was_saved
from prts_jax.checkpoint.layout import EMA, OPTIMIZER, PARAMS
from prts_jax.checkpoint.lineage import Digests
from prts_jax.growth import dense
from prts_jax.growth.leaf import fresh_layers, grow_layers, source_rows
from prts_jax.growth.on_disk import plan as sizes
from prts_jax.growth.on_disk.plan import GrowthPlan, LeafPlan
from prts_jax.growth.on_disk.row_reader import RowReader
from prts_jax.growth.recipe import Group, Make
from prts_jax.growth.widening import NEW

MEMORY_BUDGET = 2**30
"""Bytes of memory that the values in flight may take, if one job does not take more."""

Box = tuple[slice, ...]


class Job(NamedTuple):
    """Work that one thread does at a time: a group of target layers of one leaf."""

    leaf: LeafPlan
    group: Group

    @property
    def nbytes(self) -> int:
        """Bytes of values written."""
        return self.leaf.layer_bytes * len(self.group.targets)


def jobs(leaf: LeafPlan) -> list[Job]:
    """Divides the growth of a leaf into jobs; together they write every target layer once."""
    groups = []
    for group in leaf.recipe.groups():
        if group.make is Make.MIXTURE:
            groups += [Group(Make.MIXTURE, NEW, targets) for targets in leaf.mixtures()]
        elif group.make is Make.FRESH:
            groups += [Group(Make.FRESH, NEW, (target,)) for target in group.targets]
        else:
            groups.append(group)
    return [Job(leaf, group) for group in groups]


def stream(
    work: GrowthPlan,
    leaves: Sequence[LeafPlan],
    directory: str,
    progress: Callable[[int], None],
) -> dict[str, Digests]:
    """Writes the target's leaves, several jobs at a time where cores and memory allow it.

    Each source layer is read once, compared with its digest, and written to every target layer that
    copies it. Mixtures read all source layers again for every few target layers.

    Args:
      work: the growth.
      leaves: of `work`, those to write.
      directory: of the checkpoint in the making.
      progress: called after each job with the bytes written so far; its errors end the work.

    Returns:
      Item → path → digest of each target layer; all items, also where nothing was written.

    Raises:
      UserError: a source layer is damaged or cannot be read.
    """
    digests: dict[str, dict[str, list[str]]] = {PARAMS: {}, OPTIMIZER: {}, EMA: {}}
    for leaf in leaves:
        digests[leaf.item][leaf.recipe.path] = [""] * len(leaf.recipe.layers)
    growths = {(leaf.item, leaf.recipe.path): LeafGrowth(work, leaf, directory) for leaf in leaves}
    written = 0
    with ThreadPoolExecutor(_workers(work, leaves)) as pool:
        tasks = {
            pool.submit(growths[leaf.item, leaf.recipe.path].run, job.group): job
            for leaf in leaves
            for job in jobs(leaf)
        }
        try:
            for task in as_completed(tasks):
                job = tasks[task]
                for target, digest in task.result().items():
                    digests[job.leaf.item][job.leaf.recipe.path][target] = digest
                written += job.nbytes
                progress(written)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return {
        item: {path: tuple(layers) for path, layers in paths.items()}
        for item, paths in digests.items()
    }


def stream_memory(work: GrowthPlan, leaves: Sequence[LeafPlan]) -> int:
    """Returns about how many bytes of memory streaming these leaves takes for values."""
    return max(map(work.memory, leaves), default=0) * _workers(work, leaves)


def _workers(work: GrowthPlan, leaves: Sequence[LeafPlan]) -> int:
    # One more than cores: while one waits for the disk, the others read and hash.
    largest = max(map(work.memory, leaves), default=1)
    return max(1, min((os.cpu_count() or 1) + 1, MEMORY_BUDGET // max(largest, 1)))


class LeafGrowth:
    """A leaf in the source and in the target, both open, and the arithmetic between them.

    Args:
      work: the growth.
      leaf: of `work`.
      directory: of the new checkpoint.
    """

    def __init__(self, work: GrowthPlan, leaf: LeafPlan, directory: str) -> None:
        self._work, self._leaf, self._recipe = work, leaf, leaf.recipe
        self._declaration = declaration = leaf.recipe.declaration
        self._shape = declaration.layer_shape
        self._source = (
            arrays.open_leaf(work.source, self._recipe.path, leaf.item)
            if leaf.stored is not None
            else None
        )
        self._read_shape, self._chunk = leaf.blocks()
        chunk = (1, *self._chunk) if declaration.stacked else self._chunk
        self._target = arrays.create_leaf(
            directory, self._recipe.path, declaration, chunk, item=leaf.item
        )

    def run(self, group: Group) -> dict[int, str]:
        """Makes a group of target layers.

        Returns:
          Target layer (0 of a leaf without layers) → digest of the values written.

        Raises:
          UserError: the source's layer is damaged or cannot be read.
        """
        if group.make is Make.ZERO:
            return self._write_zeros(group)
        if group.make is Make.FRESH:
            return {at: self._compute(at, lambda rows: None) for at in group.targets}
        if self._recipe.unchanged:
            return self._copy(group)
        if self._work.growth_map.matrices is not None:
            return self._mix(group)
        rows_of = self._verified_rows(group.source)
        return {at: self._compute(at, rows_of) for at in group.targets}

    def _copy(self, group: Group) -> dict[int, str]:
        source = self._layer_of(self._source, group.source)
        digest = LayerDigest(self._shape)
        for box in arrays.boxes(self._shape, self._read_shape):
            values = self._read(source[box], group.source)
            digest.update(values, tuple(side.start for side in box))
            for at in group.targets:
                self._write_box(at, box, values)
        self._verify(digest.hexdigest(), group.source)
        return dict.fromkeys(group.targets, digest.hexdigest())

    def _mix(self, group: Group) -> dict[int, str]:
        """Makes layers by matrices, each layer as a whole."""
        if group.make is Make.COPY:
            sums: list[Any] = [self._verified_layer(group.source)]
        else:
            depth = self._work.arrays[dense.depth_name(self._recipe.path)]
            sums = [np.float32(0)] * len(group.targets)
            for layer in range(self._work.growth_map.source.layers):
                values = self._verified_layer(layer)
                for number, at in enumerate(group.targets):
                    sums[number] = sums[number] + depth[at, layer] * values
        digests = {}
        for at, mixture in zip(group.targets, sums, strict=True):
            values = np.asarray(self._mixer(mixture, np.int32(at)))
            self._write_box(at, tuple(slice(0, size) for size in values.shape), values)
            digests[at] = digest_of(values)
        return digests

    def _write_zeros(self, group: Group) -> dict[int, str]:
        # Written out, not left to the fill value: a whole checkpoint has every chunk.
        digest = LayerDigest(self._shape)
        for box in arrays.boxes(self._shape, self._chunk):
            zeros = np.zeros([side.stop - side.start for side in box], self._declaration.dtype)
            digest.update(zeros, tuple(side.start for side in box))
            for at in group.targets:
                self._write_box(at, box, zeros)
        return dict.fromkeys(group.targets, digest.hexdigest())

    def _verified_layer(self, layer: int) -> np.ndarray:
        values = self._read(self._layer_of(self._source, layer), layer)
        self._verify(digest_of(values), layer)
        return values

    def _verified_rows(self, layer: int) -> Callable[[range], np.ndarray]:
        """Verifies a source layer, and returns the function that reads its rows for target rows.

        A large layer is read once to be compared with its digest and again chunk by chunk.
        """
        stored = self._leaf.stored
        assert stored is not None
        first = 1 if self._declaration.stacked else 0
        shape, chunk = stored.shape[first:], stored.chunk[first:]
        source = self._layer_of(self._source, layer)
        whole = arrays.whole_chunks(shape, chunk, sizes.COMPUTED_BYTES // stored.dtype.itemsize)
        digest = LayerDigest(shape)
        if self._leaf.digests:
            for box in arrays.boxes(shape, whole):
                digest.update(self._read(source[box], layer), tuple(side.start for side in box))
        self._verify(digest.hexdigest(), layer)
        reader = RowReader(lambda rows: self._read(source[rows], layer), shape[0], whole[0])
        growth_map, declaration = self._work.growth_map, self._declaration
        return lambda rows: reader.take(source_rows(growth_map, declaration, rows))

    def _compute(self, at: int, rows_of: Callable[[range], np.ndarray | None]) -> str:
        """Computes a target layer some rows at a time, writes it, and returns its digest."""
        shape, digest = self._shape, LayerDigest(self._shape)
        for box in arrays.boxes(shape, (*self._chunk[:1], *shape[1:])):
            rows = range(box[0].start, box[0].stop)
            positions = np.arange(rows.start, rows.stop, dtype=np.int32)
            values = np.asarray(self._arithmetic(rows_of(rows), np.int32(at), positions))
            digest.update(values, (rows.start, *[0] * (len(shape) - 1)))
            self._write_box(at, box, values)
        return digest.hexdigest()

    @functools.cached_property
    def _mixer(self) -> Callable[[np.ndarray, np.int32], jax.Array]:
        """(source layer or mixture of them, target layer) → target layer."""
        growth_map, recipe = self._work.growth_map, self._recipe
        names = dense.width_names(growth_map, recipe.path, recipe.declaration)
        matrices = {name: self._work.arrays[name] for name in names.values()}

        @jax.jit
        def mix(values: jax.Array, at: jax.Array, matrices: dense.Arrays) -> jax.Array:
            return grow_layers(recipe, growth_map, values[None], at[None], matrices)[0]

        return lambda values, at: mix(values, at, matrices)

    @functools.cached_property
    def _arithmetic(self) -> Callable[[np.ndarray | None, np.int32, np.ndarray], jax.Array]:
        """(source rows or None for fresh ones, target layer, target rows) → target rows."""
        growth_map, recipe = self._work.growth_map, self._recipe

        def compute(values: jax.Array | None, at: jax.Array, rows: jax.Array) -> jax.Array:
            if values is None:
                return fresh_layers(recipe, growth_map, at[None], rows)[0]
            return grow_layers(recipe, growth_map, values[None], at[None], rows=rows)[0]

        return jax.jit(compute)

    def _write_box(self, at: int, box: Box, values: np.ndarray) -> None:
        """Writes a box of a layer chunk by chunk: each write in flight holds a copy."""
        target = self._layer_of(self._target, at)
        for part in arrays.boxes(values.shape, self._chunk):
            inside = tuple(
                slice(side.start + whole.start, side.stop + whole.start)
                for side, whole in zip(part, box, strict=True)
            )
            writing = target[inside].write(
                values[part], can_reference_source_data_indefinitely=True
            )
            writing.result()

    def _read(self, source: Any, layer: int) -> np.ndarray:
        where = f"{self._work.source}: {self._where(layer)}"
        with reading(self._work.source, self._leaf.item, where):
            values: np.ndarray = source.read().result()
        return values

    def _layer_of(self, store: Any, layer: int) -> Any:
        return store[layer] if self._declaration.stacked else store

    def _verify(self, digest: str, layer: int) -> None:
        """Compares a source layer's digest with the lineage's.

        An optimizer's state that an older version saved has none.
        """
        if self._leaf.digests and digest != self._leaf.digests[layer]:
            raise not_what_was_saved(self._work.source, self._where(layer), self._leaf.item)

    def _where(self, layer: int) -> str:
        path = self._recipe.path
        return f"{path}, layer {layer}" if self._declaration.stacked else path
