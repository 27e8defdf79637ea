"""The plan of a growth from checkpoint to checkpoint, made and checked once."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.arrays import StoredLeaf
from prts_jax.checkpoint.digests import check_paths
from prts_jax.checkpoint.layout import EMA, OPTIMIZER, PARAMS
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import model_differences
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.growth import dense
from prts_jax.growth.gates import refuse_shut
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Arrays
from prts_jax.growth.on_disk.optimizer import optimizer_recipes
from prts_jax.growth.recipe import LeafRecipe, Make, recipes
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path

MIXTURE_BYTES = 2**29
"""Bytes of mixtures of source layers that are held at once."""

BLOCK_BYTES = 2**26
"""Bytes of a layer that are copied at once, and of a chunk on disk."""

COMPUTED_BYTES = 2**24
"""Bytes of a layer that are computed at once, which takes several times as much."""


@dataclass(frozen=True)
class LeafPlan:
    """The growth of one leaf of a checkpoint.

    Attributes:
      item: of the checkpoint: `PARAMS`, `OPTIMIZER` or `EMA`.
      recipe: what the target's leaf is made of.
      stored: the source's leaf on disk; None where the source has none.
      digests: one for each source layer; none for the optimizer's state of an older version.
    """

    item: str
    recipe: LeafRecipe
    stored: StoredLeaf | None
    digests: tuple[str, ...] = ()

    @property
    def layer_bytes(self) -> int:
        """Bytes of one target layer, or of a target leaf without layers."""
        declaration = self.recipe.declaration
        return math.prod(declaration.layer_shape) * np.dtype(declaration.dtype).itemsize

    @property
    def source_layer_bytes(self) -> int:
        """Bytes of one source layer, or of a source leaf without layers."""
        if self.stored is None:
            return 0
        layers = self.stored.shape[0] if self.recipe.declaration.stacked else 1
        return self.stored.nbytes // layers

    @property
    def bytes_written(self) -> int:
        """Bytes of the target's values."""
        return self.layer_bytes * len(self.recipe.layers)

    @property
    def bytes_read(self) -> int:
        """Bytes of the source's values that are read: a copied layer once, all for each mixture."""
        copied = sum(group.make is Make.COPY for group in self.recipe.groups())
        read = copied * self.source_layer_bytes
        if self.stored is not None:
            read += self.stored.nbytes * len(self.mixtures())
        return read

    def mixtures(self) -> list[tuple[int, ...]]:
        """Groups target layers that are mixtures; each group reads all source layers once."""
        targets = self.recipe.targets(Make.MIXTURE)
        at_once = max(1, MIXTURE_BYTES // max(self.source_layer_bytes, 1))
        return [targets[at : at + at_once] for at in range(0, len(targets), at_once)]

    def blocks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns two shapes: the block of a layer that is read at once, and the target's chunk."""
        declaration = self.recipe.declaration
        shape, itemsize = declaration.layer_shape, np.dtype(declaration.dtype).itemsize
        if self.stored is not None and self.recipe.unchanged:
            stored = self.stored.chunk
            chunk = stored[1:] if declaration.stacked else stored
            read = arrays.whole_chunks(shape, chunk, BLOCK_BYTES // itemsize)
            draws = bool(self.recipe.targets(Make.FRESH))
            return read, arrays.split_rows(
                read, (COMPUTED_BYTES if draws else BLOCK_BYTES) // itemsize
            )
        return shape, arrays.split_rows(shape, COMPUTED_BYTES // itemsize)

    def memory(self, mixes: bool) -> int:
        """Returns about how many bytes of memory one piece of the leaf takes for values.

        Args:
          mixes: whether the map is dense, so that layers are computed as wholes.
        """
        itemsize = np.dtype(self.recipe.declaration.dtype).itemsize
        read, chunk = self.blocks()
        on_disk = math.prod(self.stored.chunk) if self.stored is not None else 0
        if self.stored is not None and self.recipe.unchanged:
            # Chunks as they lie on disk, maybe of several layers; their values; one being written.
            return (max(on_disk, math.prod(read)) + math.prod(read) + math.prod(chunk)) * itemsize
        if mixes:
            # The source's layer, the target's, and as much again while it is computed.
            mixtures = self.mixtures()
            held = (len(mixtures[0]) + 2) * self.source_layer_bytes if mixtures else 0
            return 3 * self.layer_bytes + held
        # Chunks as they lie on disk and their values; drawing holds counters, bits and values of
        # two kinds beside what is written.
        return (3 * on_disk + 8 * math.prod(chunk)) * itemsize


@dataclass(frozen=True)
class GrowthPlan:
    """A growth from checkpoint to checkpoint, checked but not begun.

    Attributes:
      source: the source checkpoint.
      target: directory of the new checkpoint.
      lineage: of the source.
      growth_map: what is applied.
      params: the parameters.
      optimizer: the optimizer's state; empty where it is left behind.
      ema: the moving average of the parameters; empty where the source has none.
      arrays: the matrices of a dense map.
      policy: what becomes of the optimizer's state, as in `init.growth.optimizer`.
    """

    source: str
    target: str
    lineage: Lineage
    growth_map: GrowthMap
    params: tuple[LeafPlan, ...]
    optimizer: tuple[LeafPlan, ...]
    ema: tuple[LeafPlan, ...]
    arrays: Arrays
    policy: str = "reset"

    @property
    def leaves(self) -> tuple[LeafPlan, ...]:
        """The leaves of all items."""
        return (*self.params, *self.unshared)

    @property
    def unshared(self) -> tuple[LeafPlan, ...]:
        """The leaves that are written even where the parameters' files are shared."""
        return (*self.optimizer, *self.ema)

    @property
    def recipes(self) -> dict[str, LeafRecipe]:
        """Path → recipe of the parameters."""
        return {leaf.recipe.path: leaf.recipe for leaf in self.params}

    def memory(self, leaf: LeafPlan) -> int:
        """Returns about how many bytes of memory a piece of a leaf takes for values."""
        return leaf.memory(mixes=self.growth_map.matrices is not None and leaf.item != OPTIMIZER)


def plan(source: str, target: str, growth_map: GrowthMap, optimizer: str = "reset") -> GrowthPlan:
    """Checks that a checkpoint can be grown by a map, and says what each leaf is made of.

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      target: directory of the new checkpoint.
      growth_map: a valid map from the checkpoint's model.
      optimizer: "reset" leaves the optimizer's state behind; others see `optimizer_recipes`.

    Raises:
      UserError: the checkpoint is of another model than the map's source (names the key), has gates
        that are not open, or holds other leaves than its config says (names the leaf and both
        shapes); the matrices of a dense map are missing or of other models; or the optimizer's
        state is not there or cannot be grown.
    """
    lineage = layout.read_lineage(source)
    _check_model(source, lineage, growth_map)
    refuse_shut(lineage, source)
    if optimizer != "reset" and lineage.optimizer_digests:
        saved = lineage.optimizer_digests
        check_paths(source, OPTIMIZER, saved, arrays.describe(source, OPTIMIZER))
    moments = optimizer_recipes(source, growth_map, optimizer)
    stored = arrays.describe(source)
    declared = declare(growth_map.source)
    _check_leaves(source, stored, declared)
    _check_digests(source, lineage, declared)
    targets = declare(growth_map.target)
    state = arrays.describe(source, OPTIMIZER) if moments else {}
    return GrowthPlan(
        source=source,
        target=str(as_path(target)),
        lineage=lineage,
        growth_map=growth_map,
        params=_weights(PARAMS, stored, lineage, growth_map),
        ema=_average(source, lineage, growth_map),
        optimizer=tuple(
            LeafPlan(
                OPTIMIZER, leaf, state[leaf.path], lineage.optimizer_digests.get(leaf.path, ())
            )
            for leaf in moments
        ),
        arrays=dense.arrays_of(growth_map, targets),
        policy=optimizer,
    )


def _weights(
    item: str, stored: Mapping[str, StoredLeaf], lineage: Lineage, growth_map: GrowthMap
) -> tuple[LeafPlan, ...]:
    """Plans the growth of the parameters, or of their average, which grows by the same recipes."""
    digests = lineage.digests_of(item)
    return tuple(
        LeafPlan(item, recipe, stored.get(path), digests.get(path, ()))
        for path, recipe in recipes(growth_map, declare(growth_map.target)).items()
    )


def _average(source: str, lineage: Lineage, growth_map: GrowthMap) -> tuple[LeafPlan, ...]:
    if not lineage.ema_digests:
        return ()
    stored = arrays.describe(source, EMA)
    check_paths(source, EMA, lineage.ema_digests, stored)
    _check_leaves(source, stored, declare(growth_map.source))
    return _weights(EMA, stored, lineage, growth_map)


def _check_model(source: str, lineage: Lineage, growth_map: GrowthMap) -> None:
    for field, stored, mapped in model_differences(lineage.model, growth_map.source):
        raise UserError(
            f"{source}: model.{field} is {stored}, but the growth map starts from {mapped}; make "
            "the map from the checkpoint's own config"
        )


def _check_digests(source: str, lineage: Lineage, declared: Mapping[str, Declaration]) -> None:
    for path, leaf in declared.items():
        count = len(lineage.digests.get(path, ()))
        if count != leaf.layers:
            raise UserError(
                f"{source}: {path}: has {count} digests and {leaf.layers} parts; the checkpoint is "
                "damaged"
            )


def _check_leaves(
    source: str, stored: Mapping[str, StoredLeaf], declared: Mapping[str, Declaration]
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
