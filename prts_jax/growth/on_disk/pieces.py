"""The work of streaming growth in pieces: one layer of one source leaf, and all that it becomes.

A piece is read, grown and written in blocks of at most `BLOCK_BYTES` (or of the source's chunks
where these are larger), so the memory that it takes does not depend on the size of the model.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from prts_jax.checkpoint import arrays
from prts_jax.checkpoint.digests import LayerDigest, digest_of
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.growth import dense
from prts_jax.growth.leaf import fresh_layers, grow_layers, is_copied, source_rows
from prts_jax.growth.on_disk.plan import (
    GrowthPlan,
    copied_layers,
    mixed_together,
    zeroed_layers,
)
from prts_jax.growth.on_disk.row_reader import RowReader
from prts_jax.growth.widening import NEW

BLOCK_BYTES = 2**26
"""Bytes of a layer that are copied at once, and of a chunk on disk."""

COMPUTED_BYTES = 2**24
"""Bytes of a layer that are computed at once, which takes several times as much."""

ALL = -2
"""Stands for the source layer of target layers that mix all of them."""

Box = tuple[slice, ...]


@dataclass(frozen=True)
class Piece:
    """A part of a growth that one thread does at a time.

    Attributes:
      path: of the leaf.
      layer: the source layer that is read (0 in a leaf without layers); `NEW` where none is,
        `ALL` where all are.
      targets: the target layers written.
      zero: whether they become zero; without it and a source layer they are fresh.
      nbytes: bytes of values written.
    """

    path: str
    layer: int
    targets: tuple[int, ...]
    zero: bool
    nbytes: int


def pieces(work: GrowthPlan) -> list[Piece]:
    """Divides a growth into pieces; together they write every layer of every leaf once."""
    return [piece for path in work.declarations for piece in _pieces_of(work, path)]


def _pieces_of(work: GrowthPlan, path: str) -> Iterator[Piece]:
    declaration = work.declarations[path]
    size = math.prod(layer_shape(declaration)) * np.dtype(declaration.dtype).itemsize
    if not declaration.stacked:
        yield Piece(path, 0, (0,), False, size)
        return
    if work.growth_map.matrices is not None:
        for mixed in mixed_together(work.growth_map, work.stored[path]):
            yield Piece(path, ALL, mixed, False, size * len(mixed))
        return
    for layer, targets in copied_layers(work.growth_map, declaration).items():
        yield Piece(path, layer, tuple(targets), False, size * len(targets))
    zeroed = zeroed_layers(work.growth_map, declaration)
    if zeroed:
        yield Piece(path, NEW, zeroed, True, size * len(zeroed))
    for at, layer in enumerate(work.growth_map.layers):
        if layer == NEW and at not in zeroed:
            yield Piece(path, NEW, (at,), False, size)


class LeafGrowth:
    """A leaf that is being grown: its place in the source, in the target, and what lies between.

    Args:
      work: the growth.
      directory: of the new checkpoint.
      path: of the leaf.
      database: see `arrays.create_leaf`.
    """

    def __init__(self, work: GrowthPlan, directory: str, path: str, database: str = "") -> None:
        self._work, self._path = work, path
        self._declaration = work.declarations[path]
        self._source = arrays.open_leaf(work.source, path) if path in work.stored else None
        self._read_shape, self._chunk = _block_shapes(work, path)
        chunk = (1, *self._chunk) if self._declaration.stacked else self._chunk
        self._target = arrays.create_leaf(directory, path, self._declaration, chunk, database)

    def run(self, piece: Piece) -> dict[int, str]:
        """Does a piece of this leaf.

        Returns:
          Target layer (0 of a leaf without layers) → digest of what was written.

        Raises:
          UserError: the source's layer is damaged or cannot be read.
        """
        if piece.zero:
            return self._write_zeros(piece)
        if piece.layer == NEW:
            return {at: self._compute(at, lambda rows: None) for at in piece.targets}
        if is_copied(self._work.growth_map, self._declaration):
            return self._copy(piece)
        if self._work.growth_map.matrices is not None:
            return self._mix(piece)
        rows_of = self._verified_rows(piece.layer)
        return {at: self._compute(at, rows_of) for at in piece.targets}

    def _copy(self, piece: Piece) -> dict[int, str]:
        source = self._layer_of(self._source, piece.layer)
        found = LayerDigest(layer_shape(self._declaration))
        for box in arrays.boxes(layer_shape(self._declaration), self._read_shape):
            values = self._read(source[box], piece.layer)
            found.update(values, tuple(side.start for side in box))
            for at in piece.targets:
                self._write_box(at, box, values)
        expected = self._expected_digest(piece.layer)
        if found.hexdigest() != expected:
            raise damaged(self._work.source, self._where(piece.layer))
        return dict.fromkeys(piece.targets, expected)

    def _mix(self, piece: Piece) -> dict[int, str]:
        """Makes layers that are sums over those of the source, each layer as a whole."""
        if piece.layer != ALL:
            mixtures: list[Any] = [self._verified_layer(piece.layer)]
        else:
            depth = self._work.arrays[dense.depth_name(self._path)]
            mixtures = [np.float32(0)] * len(piece.targets)
            for layer in range(self._work.growth_map.source.layers):
                values = self._verified_layer(layer)
                for number, at in enumerate(piece.targets):
                    mixtures[number] = mixtures[number] + depth[at, layer] * values
        digests = {}
        for at, mixture in zip(piece.targets, mixtures, strict=True):
            values = np.asarray(self._mixer(mixture, np.int32(at)))
            self._write_box(at, tuple(slice(0, size) for size in values.shape), values)
            digests[at] = digest_of(values)
        return digests

    def _verified_layer(self, layer: int) -> np.ndarray:
        values = self._read(self._layer_of(self._source, layer), layer)
        if digest_of(values) != self._expected_digest(layer):
            raise damaged(self._work.source, self._where(layer))
        return values

    def _write_zeros(self, piece: Piece) -> dict[int, str]:
        # Written out, not left to the fill value: a whole checkpoint has every chunk.
        digest = LayerDigest(layer_shape(self._declaration))
        for box in arrays.boxes(layer_shape(self._declaration), self._chunk):
            zeros = np.zeros([side.stop - side.start for side in box], self._declaration.dtype)
            digest.update(zeros, tuple(side.start for side in box))
            for at in piece.targets:
                self._write_box(at, box, zeros)
        return dict.fromkeys(piece.targets, digest.hexdigest())

    def _verified_rows(self, layer: int) -> Callable[[range], np.ndarray]:
        """Returns what reads the source's rows for rows of the target, after a look at all of them.

        A large layer is read once to be compared with its digest and again chunk by chunk.
        """
        stored = self._work.stored[self._path]
        first = 1 if self._declaration.stacked else 0
        shape, chunk = stored.shape[first:], stored.chunk[first:]
        source = self._layer_of(self._source, layer)
        whole = arrays.whole_chunks(shape, chunk, COMPUTED_BYTES // stored.dtype.itemsize)
        found = LayerDigest(shape)
        for box in arrays.boxes(shape, whole):
            values = self._read(source[box], layer)
            found.update(values, tuple(side.start for side in box))
        if found.hexdigest() != self._expected_digest(layer):
            raise damaged(self._work.source, self._where(layer))
        reader = RowReader(lambda rows: self._read(source[rows], layer), shape[0], whole[0])
        return lambda rows: reader.take(source_rows(self._work.growth_map, self._declaration, rows))

    def _compute(self, at: int, rows_of: Callable[[range], np.ndarray | None]) -> str:
        """Computes a target layer some rows at a time, writes it, and returns its digest."""
        shape = layer_shape(self._declaration)
        found = LayerDigest(shape)
        for box in arrays.boxes(shape, (*self._chunk[:1], *shape[1:])):
            rows = range(box[0].start, box[0].stop)
            places = np.arange(rows.start, rows.stop, dtype=np.int32)
            values = np.asarray(self._arithmetic(rows_of(rows), np.int32(at), places))
            found.update(values, (rows.start, *[0] * (len(shape) - 1)))
            self._write_box(at, box, values)
        return found.hexdigest()

    @functools.cached_property
    def _mixer(self) -> Callable[[np.ndarray, np.int32], jax.Array]:
        path, declaration, growth_map = self._path, self._declaration, self._work.growth_map
        names = dense.width_names(growth_map, path, declaration) if self._work.arrays else {}
        arrays = {name: self._work.arrays[name] for name in names.values()}

        @jax.jit
        def mix(values: jax.Array, at: jax.Array, arrays: dense.Arrays) -> jax.Array:
            return grow_layers(values[None], growth_map, path, declaration, at[None], arrays)[0]

        return lambda values, at: mix(values, at, arrays)

    @functools.cached_property
    def _arithmetic(self) -> Callable[[np.ndarray | None, np.int32, np.ndarray], jax.Array]:
        """(source rows or None for fresh ones, target layer, target rows) → target rows."""
        growth_map, path, declaration = self._work.growth_map, self._path, self._declaration

        def compute(values: jax.Array | None, at: jax.Array, rows: jax.Array) -> jax.Array:
            if values is None:
                return fresh_layers(growth_map, path, declaration, at[None], rows)[0]
            grown = grow_layers(values[None], growth_map, path, declaration, at[None], rows=rows)
            return grown[0]

        return jax.jit(compute)

    def _write_box(self, at: int, box: Box, values: np.ndarray) -> None:
        """Writes a box of a layer chunk by chunk: each write in flight holds a copy."""
        target = self._layer_of(self._target, at)
        for part in arrays.boxes(values.shape, self._chunk):
            place = tuple(
                slice(side.start + whole.start, side.stop + whole.start)
                for side, whole in zip(part, box, strict=True)
            )
            target[place].write(values[part], can_reference_source_data_indefinitely=True).result()

    def _read(self, source: Any, layer: int) -> np.ndarray:
        try:
            values: np.ndarray = source.read().result()
        except Exception as error:  # tensorstore raises a bare one for a failed read
            raise arrays.unreadable(self._work.source, self._where(layer), error) from error
        return values

    def _layer_of(self, store: Any, layer: int) -> Any:
        return store[layer] if self._declaration.stacked else store

    def _expected_digest(self, layer: int) -> str:
        return self._work.lineage.digests[self._path][layer]

    def _where(self, layer: int) -> str:
        return f"{self._path}, layer {layer}" if self._declaration.stacked else self._path


def layer_shape(declaration: Declaration) -> tuple[int, ...]:
    """Returns the shape of one layer, or of a leaf without layers."""
    return declaration.shape[1:] if declaration.stacked else declaration.shape


def piece_memory(work: GrowthPlan, path: str) -> int:
    """Returns about how many bytes of memory a piece of a leaf takes for values."""
    itemsize = np.dtype(work.declarations[path].dtype).itemsize
    read, chunk = _block_shapes(work, path)
    on_disk = math.prod(work.stored[path].chunk) if path in work.stored else 0
    if path in work.stored and is_copied(work.growth_map, work.declarations[path]):
        # Chunks as they lie on disk, maybe of several layers; their values; one being written.
        return (max(on_disk, math.prod(read)) + math.prod(read) + math.prod(chunk)) * itemsize
    if work.growth_map.matrices is not None:
        return _mixing_memory(work, path)
    # Chunks as they lie on disk and their values; drawing holds counters, bits and values of two
    # kinds beside what is written.
    return (3 * on_disk + 8 * math.prod(chunk)) * itemsize


def _mixing_memory(work: GrowthPlan, path: str) -> int:
    declaration, stored = work.declarations[path], work.stored[path]
    # The source's layer, the target's, and as much again while it is computed.
    computed = 3 * math.prod(layer_shape(declaration)) * stored.dtype.itemsize
    if not declaration.stacked:
        return computed
    at_once = len(mixed_together(work.growth_map, stored)[0])
    return computed + (at_once + 2) * stored.nbytes // stored.shape[0]


def damaged(checkpoint: str, where: str) -> UserError:
    """Returns the error of a layer whose values are not those that were saved."""
    return UserError(
        f"{checkpoint}: {where}: is not what was saved (digests differ); the files are damaged, "
        "use another checkpoint"
    )


def _block_shapes(work: GrowthPlan, path: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns what of a layer is read at once, and the shape of its chunks in the target."""
    declaration = work.declarations[path]
    shape, itemsize = layer_shape(declaration), np.dtype(declaration.dtype).itemsize
    if path in work.stored and is_copied(work.growth_map, declaration):
        stored = work.stored[path].chunk
        chunk = stored[1:] if declaration.stacked else stored
        read = arrays.whole_chunks(shape, chunk, BLOCK_BYTES // itemsize)
        computes = declaration.stacked and NEW in work.growth_map.layers
        most = COMPUTED_BYTES if computes else BLOCK_BYTES
        return read, arrays.split_rows(read, most // itemsize)
    return shape, arrays.split_rows(shape, COMPUTED_BYTES // itemsize)
