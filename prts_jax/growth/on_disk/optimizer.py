"""Growth of an optimizer's state on disk: each moment layer by layer, beside the parameters.

However the parameters are grown, moments are read and written: under width growth their values
change, and a run that starts from the checkpoint rewrites them with its first save anyway.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax
import numpy as np
import tensorstore as ts

from prts_jax.checkpoint import arrays
from prts_jax.checkpoint.arrays import StoredLeaf
from prts_jax.checkpoint.layout import OPTIMIZER
from prts_jax.declaration import Declaration, Kind
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.optimizer import (
    KEPT,
    Moment,
    blank_layers,
    check_copies,
    grow_moment_layers,
    roles,
)
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path

BLOCK_BYTES = 2**26
"""Bytes of a moment without layers that are grown at once, and of a chunk on disk."""

Box = tuple[slice, ...]


@dataclass(frozen=True)
class OptimizerPlan:
    """What the growth of an optimizer's state will do, checked but not begun.

    Attributes:
      source: the source checkpoint.
      growth_map: what becomes of the parameters.
      stored: path → the source's leaf on disk.
      roles: path → what the leaf is: a moment, or a count that is kept.
      declarations: path → what it becomes: a moment is declared as its parameter is.
    """

    source: str
    growth_map: GrowthMap
    stored: dict[str, StoredLeaf]
    roles: dict[str, Moment | str]
    declarations: dict[str, Declaration]

    @property
    def bytes_read(self) -> int:
        """Bytes of values in the source."""
        return sum(leaf.nbytes for leaf in self.stored.values())

    @property
    def bytes_written(self) -> int:
        """Bytes of values in the target."""
        return sum(
            math.prod(declaration.shape) * np.dtype(declaration.dtype).itemsize
            for declaration in self.declarations.values()
        )


def plan_optimizer(source: str, growth_map: GrowthMap) -> OptimizerPlan:
    """Checks that the optimizer's state of a checkpoint can be grown by a map.

    Args:
      source: a complete checkpoint (what `layout.resolve` returned).
      growth_map: a valid map from the checkpoint's model.

    Raises:
      UserError: there is no such state, or it or the map cannot be grown (names the leaf).
    """
    if not as_path(f"{source}/{OPTIMIZER}").exists():
        raise UserError(
            f"{source}: holds no optimizer state to copy; leave --optimizer=copy out, or name a "
            "checkpoint that a run has saved"
        )
    if growth_map.source.layers == 0:
        raise UserError(
            f"{source}: a model without layers has no moments of them; use --optimizer=reset"
        )
    check_copies(growth_map)
    stored = arrays.describe(source, OPTIMIZER)
    found = roles(stored, declare(growth_map.source))
    targets = declare(growth_map.target)
    declarations = {}
    for path, role in found.items():
        dtype = stored[path].dtype.name
        if isinstance(role, Moment):
            target = targets[role.parameter]
            declarations[path] = dataclasses.replace(target, dtype=dtype)
        elif role == KEPT:
            declarations[path] = Declaration((), dtype, (), (), "ones", Kind.NORM)
        else:
            raise UserError(
                f"{source}: {path}: depends on the config of the run to come; use "
                "--optimizer=reset, or grow in the run with config.init.grow_from"
            )
    return OptimizerPlan(source, growth_map, stored, found, declarations)


def optimizer_bytes(work: OptimizerPlan | None) -> tuple[int, int]:
    """Returns (bytes read, bytes written) of a plan, or of none."""
    return (work.bytes_read, work.bytes_written) if work is not None else (0, 0)


def stream_optimizer(work: OptimizerPlan, directory: str) -> None:
    """Writes the grown state into a checkpoint in the making, about a layer at a time per core.

    Args:
      work: what is grown.
      directory: of the checkpoint in the making.

    Raises:
      UserError: a leaf cannot be read.
    """
    write_moments(work, directory)
    arrays.write_tree(directory, work.declarations, OPTIMIZER)


def write_moments(
    work: OptimizerPlan,
    directory: str,
    process: int = 0,
    processes: int = 1,
    step: Callable[[], None] = lambda: None,
) -> None:
    """Writes a process's share of the grown state: every n-th of its layers and blocks.

    Args:
      work: what is grown.
      directory: of the checkpoint in the making.
      process: whose share; where there are several, it goes to a database of its own.
      processes: n; all of them write.
      step: called after each part; what it raises ends the work.

    Raises:
      UserError: a leaf cannot be read.
    """
    database = arrays.process_database(process) if processes > 1 else ""
    parts = [part for path in work.declarations for part in _tasks(work, directory, path, database)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tasks = [pool.submit(part) for part in parts[process::processes]]
        try:
            for task in tasks:
                task.result()
                step()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _tasks(
    work: OptimizerPlan, directory: str, path: str, database: str
) -> Iterator[Callable[[], None]]:
    """Yields functions that each grow a part of a leaf; the same parts on every process."""
    role, declaration = work.roles[path], work.declarations[path]
    source = arrays.open_leaf(work.source, path, OPTIMIZER)
    rows = BLOCK_BYTES // np.dtype(declaration.dtype).itemsize
    shape = declaration.shape[1:] if declaration.stacked else declaration.shape
    chunk = arrays.split_rows(shape, rows)
    stacked_chunk = (1, *chunk) if declaration.stacked else chunk
    target = arrays.create_leaf(directory, path, declaration, stacked_chunk, database, OPTIMIZER)
    if not isinstance(role, Moment):
        yield functools.partial(_copy, work, path, source, [target])
        return
    power = role.power

    @jax.jit
    def grow(values: jax.Array) -> jax.Array:
        return grow_moment_layers(values[None], work.growth_map, declaration, power)[0]

    if not declaration.stacked:
        for old, new in _blocks(work, path):
            yield functools.partial(_copy, work, path, source[old], [target[new]], grow)
        return
    blank = blank_layers(work.growth_map)
    layers = np.asarray(work.growth_map.layers)
    for layer in np.unique(layers[~blank]):
        places = [target[at] for at in np.flatnonzero(~blank & (layers == layer))]
        yield functools.partial(_copy, work, path, source[layer], places, grow)
    for at in np.flatnonzero(blank):
        # Written out, not left to the fill value: a whole checkpoint has every chunk.
        yield functools.partial(_write, target[at], np.zeros(shape, declaration.dtype))


def _copy(
    work: OptimizerPlan,
    path: str,
    source: ts.TensorStore,
    places: list[ts.TensorStore],
    grow: Callable[[np.ndarray], jax.Array] | None = None,
) -> None:
    try:
        values = np.asarray(source.read().result())
    except Exception as error:  # tensorstore raises ValueError and others for bad files
        raise arrays.unreadable(work.source, path, error) from error
    grown = values if grow is None else np.asarray(grow(values))
    for place in places:
        _write(place, grown)


def _write(place: ts.TensorStore, values: np.ndarray) -> None:
    place.write(values, can_reference_source_data_indefinitely=True).result()


def _blocks(work: OptimizerPlan, path: str) -> Iterator[tuple[Box, Box]]:
    """Yields boxes of a leaf without layers, in the source and in the target.

    They split the longest axis that does not widen (of the embedding and the head: the vocabulary).
    """
    old, new = work.stored[path].shape, work.declarations[path]
    whole = tuple(slice(None) for _ in old)
    splittable = [at for at, axis in enumerate(new.axes) if axis not in work.growth_map.widths]
    if not splittable:
        yield whole, whole
        return
    axis = max(splittable, key=lambda at: old[at])
    size = math.prod(new.shape) // new.shape[axis] * np.dtype(new.dtype).itemsize
    step = max(1, BLOCK_BYTES // size)
    for start in range(0, old[axis], step):
        box = (*whole[:axis], slice(start, min(start + step, old[axis])), *whole[axis + 1 :])
        yield box, box
