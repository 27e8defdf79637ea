"""Restoring checkpoints into the shardings of a mesh, and parts of them to the host."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np

from prts_jax.checkpoint.damage import agreed
from prts_jax.checkpoint.digests import check_digests, digests, optimizer_digests
from prts_jax.checkpoint.items import read_tree
from prts_jax.checkpoint.layout import OPTIMIZER, PARAMS, check_weights, read_lineage
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.paths import as_path
from prts_jax.tree import flatten, named_leaves, unflatten


def restore_params(
    path: str,
    abstract: Mapping[str, Any],
    declarations: Mapping[str, Declaration],
    lineage: Lineage | None = None,
    item: str = PARAMS,
) -> dict[str, Any]:
    """Reads parameters directly into the given shardings, which may differ from the saved ones.

    Args:
      path: returned by `resolve`.
      abstract: nested dict of `jax.ShapeDtypeStruct`, each with its sharding.
      declarations: path → declaration of the same parameters.
      lineage: of the checkpoint; None reads it.
      item: `PARAMS`, or `EMA` for their moving average.

    Returns:
      Nested dict of arrays.

    Raises:
      UserError: tree, shape or dtype of the config differ from the checkpoint's (names the leaf and
        both shapes), or the checkpoint holds no such item.
      DamagedError: files are missing or damaged, or values differ from those saved (names the leaf
        and the layer).
      StorageError: the storage failed.
    """
    lineage = lineage or read_lineage(path)
    check_weights(path, lineage, item)
    with agreed():
        params = unflatten(_restore(path, item, flatten(abstract), lineage))
    check_digests(path, lineage.digests_of(item), digests(params, declarations), item)
    return params


def read_leaves(
    path: str, declarations: Mapping[str, Declaration], chosen: Collection[str]
) -> dict[str, np.ndarray]:
    """Reads some parameters to the host after checking the tree of all parameters.

    Args:
      path: directory of a checkpoint; its lineage may still be missing.
      declarations: path → declaration of all parameters in the checkpoint.
      chosen: paths of the parameters to read.

    Returns:
      path → array, for the chosen paths.

    Raises:
      UserError: tree, shape or dtype on disk differ (names the leaf), or files cannot be read.
    """
    arrays = {name: declarations[name] for name in chosen}
    host = {name: np.zeros(leaf.shape, leaf.dtype) for name, leaf in arrays.items()}
    values = read_tree(path, PARAMS, declarations, host)
    return {name: np.asarray(value) for name, value in values.items()}


def has_optimizer(path: str, lineage: Lineage) -> bool:
    """Returns whether a checkpoint was saved with optimizer state.

    Args:
      path: returned by `resolve`.
      lineage: of the checkpoint; those of older versions do not say.
    """
    return bool(lineage.optimizer_digests) or as_path(f"{path}/{OPTIMIZER}").exists()


def restore_optimizer(path: str, abstract: Any, lineage: Lineage | None = None) -> Any:
    """Reads optimizer state into the tree and the shardings of `abstract`.

    Args:
      path: returned by `resolve`.
      abstract: tree of `jax.ShapeDtypeStruct` with shardings: `jax.eval_shape(tx.init, …)`.
      lineage: of the checkpoint; None reads it.

    Returns:
      A tree of the same structure, optax's tuples included.

    Raises:
      UserError: the checkpoint has no optimizer state, or another optimizer's (names the leaf).
      DamagedError: files are missing or damaged, or values differ from those saved (names the leaf
        and the layer). Checkpoints of older versions have no digests of the optimizer's state.
      StorageError: the storage failed.
    """
    lineage = lineage or read_lineage(path)
    if not has_optimizer(path, lineage):
        raise UserError(
            f"{path}: holds no optimizer state (a grown checkpoint has none by default); start a "
            "run from it with config.init.start_from, and config.init.growth.optimizer=reset"
        )
    named = named_leaves(abstract)
    with agreed():
        values = _restore(path, OPTIMIZER, named, lineage)
    if lineage.optimizer_digests:
        check_digests(path, lineage.optimizer_digests, optimizer_digests(values), OPTIMIZER)
    return jax.tree.unflatten(jax.tree.structure(abstract), [values[name] for name in named])


def _restore(
    checkpoint: str, item: str, leaves: Mapping[str, Any], lineage: Lineage
) -> dict[str, Any]:
    """Returns path → array; empty ones, which Orbax cannot save, are made here."""
    stored = {path: leaf for path, leaf in leaves.items() if np.prod(leaf.shape)}
    zeros = {
        path: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        for path, leaf in leaves.items()
        if path not in stored
    }
    return read_tree(checkpoint, item, stored, stored, lineage.digests_of(item)) | zeros
