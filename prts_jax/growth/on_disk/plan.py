"""What the growth of a checkpoint will do: checked and counted before it begins."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.arrays import StoredLeaf
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.growth import dense
from prts_jax.growth.gates import refuse_shut
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Arrays
from prts_jax.growth.widening import NEW
from prts_jax.model.architecture import declare

MIXTURE_BYTES = 2**29
"""Bytes of mixtures of source layers that are held at once."""


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
      arrays: the matrices of a dense map.
    """

    source: str
    lineage: Lineage
    growth_map: GrowthMap
    stored: dict[str, StoredLeaf]
    declarations: Mapping[str, Declaration]
    bytes_read: int
    bytes_written: int
    arrays: Arrays


def plan(source: str, growth_map: GrowthMap) -> GrowthPlan:
    """Checks that a checkpoint can be grown by a map, and counts the bytes.

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      growth_map: a valid map from the checkpoint's model.

    Raises:
      UserError: the checkpoint is of another model than the map's source (names the key), has gates
        that are not open, or holds other leaves than its config says (names the leaf and both
        shapes); or the matrices of a dense map are missing or of other models.
    """
    lineage = layout.read_lineage(source)
    _check_source(source, lineage, growth_map)
    refuse_shut(lineage, source)
    stored = arrays.describe(source)
    _check_leaves(source, stored, declare(growth_map.source))
    _check_digests(source, lineage, declare(growth_map.source))
    targets = declare(growth_map.target)
    read = written = 0
    for path, declaration in targets.items():
        written += math.prod(declaration.shape) * np.dtype(declaration.dtype).itemsize
        if not declaration.stacked:
            read += stored[path].nbytes
        elif growth_map.matrices is not None:
            read += stored[path].nbytes * len(mixed_together(growth_map, stored[path]))
        elif copies := copied_layers(growth_map, declaration):
            read += stored[path].nbytes // stored[path].shape[0] * len(copies)
    matrices = dense.arrays_of(growth_map, targets)
    return GrowthPlan(source, lineage, growth_map, stored, targets, read, written, matrices)


def mixed_together(growth_map: GrowthMap, leaf: StoredLeaf) -> list[tuple[int, ...]]:
    """Groups the target layers of a dense map: for each group all source layers are read once.

    Args:
      growth_map: of which every target layer mixes all source layers.
      leaf: the source's, with layers.
    """
    at_once = max(1, MIXTURE_BYTES // (leaf.nbytes // leaf.shape[0]))
    layers = range(growth_map.target.layers)
    return [tuple(layers[at : at + at_once]) for at in range(0, len(layers), at_once)]


def copied_layers(growth_map: GrowthMap, declaration: Declaration) -> dict[int, list[int]]:
    """Returns source layer → target layers that come from it in a stacked leaf.

    Zero outputs and new layers come from none.
    """
    zeroed = set(zeroed_layers(growth_map, declaration))
    copies: dict[int, list[int]] = {}
    for at, layer in enumerate(growth_map.layers):
        if at not in zeroed and layer != NEW:
            copies.setdefault(layer, []).append(at)
    return dict(sorted(copies.items()))


def zeroed_layers(growth_map: GrowthMap, declaration: Declaration) -> tuple[int, ...]:
    """Returns the target layers that are zero in a stacked leaf."""
    return growth_map.zeroed if declaration.writes_stream else ()


def _check_source(source: str, lineage: Lineage, growth_map: GrowthMap) -> None:
    for field in dataclasses.fields(growth_map.source):
        stored = getattr(lineage.model, field.name)
        mapped = getattr(growth_map.source, field.name)
        if stored != mapped:
            raise UserError(
                f"{source}: model.{field.name} is {stored}, but the growth map starts from "
                f"{mapped}; make the map from the checkpoint's own config"
            )


def _check_digests(source: str, lineage: Lineage, declared: Mapping[str, Declaration]) -> None:
    for path, leaf in declared.items():
        expected = leaf.shape[0] if leaf.stacked else 1
        if len(lineage.digests.get(path, ())) != expected:
            raise UserError(
                f"{source}: {path}: has {len(lineage.digests.get(path, ()))} digests and "
                f"{expected} parts; the checkpoint is damaged"
            )


def _check_leaves(
    source: str, stored: dict[str, StoredLeaf], declared: Mapping[str, Declaration]
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
