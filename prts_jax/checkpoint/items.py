"""Items of a checkpoint, written and read with Orbax: the only file that imports it."""

import contextlib
import dataclasses
import functools
import inspect
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.arrays import METADATA
from prts_jax.checkpoint.damage import reading
from prts_jax.checkpoint.digests import check_paths
from prts_jax.checkpoint.layout import EMA, LINEAGE, OPTIMIZER, PARAMS, TOKENIZER
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.matrices_files import MATRICES
from prts_jax.declaration import LAYERS
from prts_jax.errors import (
    FULL,
    StorageError,
    UserError,
    first_line,
    is_storage_error,
    os_code,
    storage_reason,
)
from prts_jax.paths import as_path, sync_all
from prts_jax.tree import flatten, named_leaves, unflatten

CHUNK_BYTES = 64 * 2**20
"""Largest chunk of a leaf in bytes, so that growth reads large leaves in parts."""


@dataclasses.dataclass
class _FilesSave(ocp.args.CheckpointArgs):
    """File name → function that the first process calls in the background for its contents."""

    files: Mapping[str, Callable[[], bytes]] = dataclasses.field(repr=False)


class _FilesHandler(ocp.AsyncCheckpointHandler):
    """Writes `_FilesSave`; `prts_jax.checkpoint.layout` reads the files."""

    async def async_save(self, directory: Any, args: _FilesSave) -> list[Any]:  # type: ignore[override]
        async def write() -> None:
            if jax.process_index() == 0:
                for name, contents in args.files.items():
                    (directory / name).write_bytes(contents())

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="files")]

    def save(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("saved in the background only")

    def restore(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("read by prts_jax.checkpoint.layout")


ocp.args.register_with_handler(_FilesHandler, for_save=True, for_restore=True)(_FilesSave)


class _SyncedHandler(ocp.CompositeCheckpointHandler):
    """Writes all files through to the disk before Orbax renames or marks the checkpoint."""

    def finalize(self, directory: Any) -> None:
        super().finalize(directory)
        sync_all(directory)


@ocp.args.register_with_handler(_SyncedHandler, for_save=True, for_restore=True)
class _SyncedSave(ocp.args.Composite):
    """Arguments of `_SyncedHandler`: item → its arguments."""


def checkpointer(meet: Callable[..., None] | None = None) -> ocp.AsyncCheckpointer:
    """Returns a writer of checkpoints; close it.

    Args:
      meet: barrier of the processes in the background, called with `key` and `timeout_ms`; None
        for Orbax's own.
    """
    _hide_late_errors()  # a save fails in the background, while steps are trained

    def arrays() -> ocp.PyTreeCheckpointHandler:
        # Weights hardly compress, and compression would take most of the time of a save.
        return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False)

    handlers = {
        PARAMS: arrays(),
        OPTIMIZER: arrays(),
        EMA: arrays(),
        LINEAGE: _FilesHandler(),
        MATRICES: _FilesHandler(),
        TOKENIZER: _FilesHandler(),
    }
    # Where a thread of its own cannot make the directories, the others wait for 300 s.
    options = ocp.options.AsyncOptions(
        create_directories_asynchronously=False, barrier_sync_fn=meet
    )
    return ocp.AsyncCheckpointer(_SyncedHandler(**handlers), async_options=options)


def save_args(
    params: Any,
    optimizer: Any,
    lineage: Lineage,
    complete: Callable[[], Lineage],
    tokenizer: Mapping[str, bytes],
    ema: Any = None,
) -> _SyncedSave:
    """Returns the arguments of a save for `checkpointer`.

    Args:
      params: nested dict of arrays.
      optimizer: any tree of arrays; None saves none.
      lineage: of the checkpoint.
      complete: returns the lineage with its digests; called in the background.
      tokenizer: name → contents of the tokenizer's files.
      ema: nested dict as `params`; None saves none.
    """
    items = {
        PARAMS: _tree_save(flatten(params)),
        LINEAGE: _FilesSave({layout.LINEAGE_FILE: lambda: layout.sealed(complete())}),
    }
    if optimizer is not None:
        items[OPTIMIZER] = _tree_save(named_leaves(optimizer))
    if ema is not None:
        items[EMA] = _tree_save(flatten(ema))
    if lineage.matrices:
        files = {f"{digest}.npz": m.to_bytes for digest, m in lineage.matrices.items()}
        items[MATRICES] = _FilesSave(files)
    if tokenizer:
        items[TOKENIZER] = _FilesSave(
            {name: functools.partial(bytes, held) for name, held in tokenizer.items()}
        )
    return _SyncedSave(**items)


def _tree_save(leaves: Mapping[str, Any]) -> ocp.args.PyTreeSave:
    # Orbax cannot save empty leaves, which the optimizer of a model without layers has.
    stored = {path: leaf for path, leaf in leaves.items() if leaf.size}
    options = {
        # Growth copies single layers; the default chunk would be a device's shard of all layers.
        path: ocp.SaveArgs(shard_axes=(0,), chunk_byte_size=CHUNK_BYTES)
        if LAYERS in path.split("/")
        else ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
        for path in stored
    }
    return ocp.args.PyTreeSave(unflatten(stored), save_args=unflatten(options))


def read_tree(
    checkpoint: str,
    item: str,
    expected: Mapping[str, Any],
    chosen: Mapping[str, Any],
    digests: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Reads arrays of an item after comparing its tree with the expected one.

    Args:
      checkpoint: path of the checkpoint.
      item: `PARAMS`, `OPTIMIZER` or `EMA`.
      expected: path → anything with shape and dtype, for all arrays of the item.
      chosen: path → `jax.ShapeDtypeStruct` with a sharding, or a NumPy array for one on the host,
        of each array to read.
      digests: path → digest of the saved arrays; None if they are not known.

    Returns:
      path → array, for the chosen paths.

    Raises:
      UserError: tree, shape or dtype on disk differ (names the leaf).
      DamagedError: files are missing or damaged.
      StorageError: the storage failed.
    """
    directory = as_path(f"{checkpoint}/{item}")
    handler = ocp.PyTreeCheckpointHandler()
    with _restoring(checkpoint, item):
        # Orbax takes a file that it cannot read (EACCES, EIO, ESTALE) for a missing one.
        (directory / METADATA).read_bytes()
        stored = flatten(handler.metadata(directory).tree)
        if digests is not None:
            check_paths(checkpoint, item, digests, stored)
    _compare(str(directory), expected, stored)
    wanted = unflatten({path: chosen.get(path, ocp.PLACEHOLDER) for path in expected})
    arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
    restore = ocp.args.PyTreeRestore(wanted, restore_args=arguments)
    with _restoring(checkpoint, item):
        values = flatten(handler.restore(directory, args=restore))
    return {path: values[path] for path in chosen}


def saved_at(checkpoint: str) -> float:
    """Returns when a checkpoint was saved, seconds since the epoch; 0.0 if it does not say."""
    try:
        values = json.loads((as_path(checkpoint) / "_CHECKPOINT_METADATA").read_bytes())
        return float(values["init_timestamp_nsecs"]) / 1e9
    except (OSError, ValueError, TypeError, KeyError):
        return 0.0


@contextlib.contextmanager
def saving(what: str) -> Iterator[None]:
    """Converts errors of Orbax and tensorstore in a save to a StorageError of one line.

    They raise ValueError for most errors, OSError for some, and Exception for others; gcsfs has its
    own.
    """
    try:
        yield
    except (UserError, StorageError):
        raise
    except Exception as error:
        known = is_storage_error(error)
        if not known and type(error) not in (Exception, ValueError, RuntimeError):
            raise
        line, code = first_line(error, most=10_000), os_code(error)
        if known or len(line) < 200:
            reason = storage_reason(error)
        else:  # tensorstore lists causes from the outside in: the last one says most
            reason = f"… {line.partition(' [')[0][-160:]}"
        full = code in FULL or "no space left" in reason.lower()
        advice = "free space" if full else "see whether the storage works"
        raise StorageError(f"{what} ({reason}); {advice}") from error


@contextlib.contextmanager
def _restoring(checkpoint: str, item: str) -> Iterator[None]:
    """Converts the errors of a restore, see `damage.unreadable`."""
    _hide_late_errors()
    with reading(checkpoint, item, f"{checkpoint}/{item}"):
        yield


def _hide_late_errors() -> None:
    """Hides, from now on, what reads and writes report after the first error of Orbax.

    Orbax has closed its event loop by then. Python would print a traceback for each of them, and a
    warning for each coroutine that was never awaited.
    """
    if not isinstance(sys.unraisablehook, functools.partial):
        sys.unraisablehook = functools.partial(_report, sys.unraisablehook)
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _report(hook: Callable[[Any], object], error: Any) -> None:
    """Passes an error that no code can catch to `hook`, unless it is a late one."""
    coroutine = inspect.iscoroutine(error.object)
    if not coroutine and "Event loop is closed" not in str(error.exc_value):
        hook(error)


def _compare(directory: str, wanted: Mapping[str, Any], stored_leaves: Mapping[str, Any]) -> None:
    for path in sorted(wanted.keys() | stored_leaves.keys()):
        if path not in stored_leaves:
            raise UserError(f"{directory}: {path}: is missing; the config describes another tree")
        if path not in wanted:
            raise UserError(
                f"{directory}: {path}: is on disk but not in the config's model or optimizer"
            )
        shapes = tuple(stored_leaves[path].shape), tuple(wanted[path].shape)
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{directory}: {path}: has shape {shapes[0]} on disk and {shapes[1]} by the "
                "config; use the config of the checkpoint, or grow it"
            )
        dtypes = np.dtype(stored_leaves[path].dtype), np.dtype(wanted[path].dtype)
        if dtypes[0] != dtypes[1]:
            raise UserError(f"{directory}: {path}: is {dtypes[0]} on disk, {dtypes[1]} wanted")
