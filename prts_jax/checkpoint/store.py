"""Saving and restoring checkpoints with Orbax: the only file that imports it."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.commit import refuse_existing
from prts_jax.checkpoint.digests import check_digests, digests
from prts_jax.checkpoint.layout import LINEAGE, MATRICES, OPTIMIZER, PARAMS, read_lineage, resolve
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.declaration import LAYERS, Declaration
from prts_jax.errors import UserError, first_line
from prts_jax.paths import as_path
from prts_jax.tree import flatten, named_leaves, unflatten

__all__ = [
    "Checkpoints",
    "has_optimizer",
    "read_leaves",
    "read_lineage",
    "resolve",
    "restore_optimizer",
    "restore_params",
    "save_checkpoint",
]

CHUNK_BYTES = 64 * 2**20
"""Largest chunk of a leaf, so that growth reads a vocabulary or a wide layer piece by piece."""


@dataclasses.dataclass
class _FilesSave(ocp.args.CheckpointArgs):
    """Names → contents of files that one process writes as they are."""

    files: Mapping[str, bytes] = dataclasses.field(repr=False)


class _FilesHandler(ocp.AsyncCheckpointHandler):
    """Writes `_FilesSave`; `prts_jax.checkpoint.layout` reads the files."""

    async def async_save(self, directory: Any, args: _FilesSave) -> list[Any]:  # type: ignore[override]
        async def write() -> None:
            if jax.process_index() == 0:
                for name, contents in args.files.items():
                    (directory / name).write_bytes(contents)

        return [ocp.future.CommitFutureAwaitingContractedSignals(write(), name="files")]

    def save(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("saved in the background only")

    def restore(self, *args: Any, **kwargs: Any) -> None:
        raise NotImplementedError("read by prts_jax.checkpoint.layout")


ocp.args.register_with_handler(_FilesHandler, for_save=True, for_restore=True)(_FilesSave)


class Checkpoints:
    """The checkpoints of a run, `<directory>/<step>/`, for the one run that writes them.

    Saves run in the background, one at a time. Opening removes what a killed save left behind, so
    hold `workdir_lock` first.

    Args:
      directory: the run's `checkpoints` directory, local or gs://.
      keep: how many of the newest are kept; while one is being written there is one more.
      keep_every_steps: multiples of this step are kept for ever; 0 keeps none.
    """

    def __init__(self, directory: str, keep: int, keep_every_steps: int) -> None:
        self._directory = str(as_path(directory))
        self._keep = keep
        self._keep_every_steps = keep_every_steps
        self._protected: set[int] = set()
        self._checkpointer = _checkpointer()
        if jax.process_index() == 0:
            as_path(self._directory).mkdir(parents=True, exist_ok=True)
            _remove_incomplete(self._directory)
        _barrier("prts_jax:checkpoints_opened")

    def save(self, step: int, params: Any, optimizer: Any, lineage: Lineage) -> None:
        """Starts to save a checkpoint; every process calls it.

        Waits for an earlier save, and until the arrays are on the host; then they may be donated.
        (On CPU Orbax writes from views of them, and JAX does not reuse a buffer under a view.)

        Args:
          step: the lineage's step; names the directory.
          params: nested dict of arrays.
          optimizer: any tree of arrays.
          lineage: with the digests of `params`.

        Raises:
          UserError: the earlier save failed, or the step was saved before.
        """
        self.wait()
        if step in self.steps():
            raise UserError(f"{self.path(step)}: exists already; a step is saved once")
        with _storage_errors(f"checkpoint {self.path(step)}: could not be written"):
            self._checkpointer.save(self.path(step), args=_save_args(params, optimizer, lineage))

    def latest(self) -> int | None:
        """Returns the newest complete step, None where there is none."""
        steps = self.steps()
        return steps[-1] if steps else None

    def steps(self) -> list[int]:
        """Returns all complete steps, oldest first."""
        return layout.complete_steps(self._directory)

    def path(self, step: int) -> str:
        """Returns the directory of a step's checkpoint."""
        return f"{self._directory}/{step}"

    def protect(self, path: str) -> None:
        """Keeps a checkpoint from now on, if it is one of these: something still needs it."""
        self._protected |= {step for step in self.steps() if self.path(step) == path}

    def wait(self) -> None:
        """Waits for the save in the background and drops checkpoints beyond `keep`.

        Raises:
          UserError: the save failed (a full disk, say); checkpoints before it are whole.
        """
        with _storage_errors(f"checkpoint in {self._directory}: could not be written"):
            self._checkpointer.wait_until_finished()
        if jax.process_index() == 0:
            for step in self._dropped(self.steps()):
                _remove(self.path(step))

    def close(self) -> None:
        """Waits as `wait` does and stops the background threads."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def _dropped(self, steps: list[int]) -> list[int]:
        every = self._keep_every_steps
        return [
            step
            for step in steps[: -self._keep]
            if step not in self._protected and not (every and step % every == 0)
        ]


def save_checkpoint(path: str, params: Any, lineage: Lineage) -> None:
    """Writes one complete checkpoint without optimizer state, and waits until it is there.

    Args:
      path: directory that does not exist yet.
      params: nested dict of arrays, of JAX or NumPy.
      lineage: with the digests of `params`.

    Raises:
      UserError: `path` exists, or cannot be written.
    """
    path = str(as_path(path))
    refuse_existing(path)
    with (
        _storage_errors(f"checkpoint {path}: could not be written"),
        contextlib.closing(_checkpointer()) as checkpointer,
    ):
        checkpointer.save(path, args=_save_args(params, None, lineage))
        checkpointer.wait_until_finished()


def restore_params(
    path: str,
    abstract: Mapping[str, Any],
    declarations: Mapping[str, Declaration],
    verify: bool = True,
) -> dict[str, Any]:
    """Reads parameters straight into the shardings asked for, whatever mesh wrote them.

    Args:
      path: what `resolve` returned.
      abstract: nested dict of `jax.ShapeDtypeStruct`, each with its sharding.
      declarations: path → declaration of the same parameters.
      verify: whether to compare the digests of what was read with the lineage's.

    Returns:
      Nested dict of arrays.

    Raises:
      UserError: another tree, shape or dtype on disk (names the leaf and both shapes), files that
        cannot be read, or values that differ from those saved (names the leaf and the layer).
    """
    leaves = flatten(abstract)
    params = unflatten(_restore(f"{path}/{PARAMS}", leaves))
    if verify:
        check_digests(path, read_lineage(path).digests, digests(params, declarations))
    return params


def read_leaves(
    path: str, declarations: Mapping[str, Declaration], chosen: Collection[str]
) -> dict[str, np.ndarray]:
    """Reads a few parameters to the host, after a look at the tree of all of them.

    Args:
      path: directory of a checkpoint, its lineage may still be missing.
      declarations: path → declaration of all parameters it should hold.
      chosen: paths of those to read.

    Returns:
      path → array, for the chosen ones.

    Raises:
      UserError: another tree, shape or dtype on disk (names the leaf), or unreadable files.
    """
    directory = f"{path}/{PARAMS}"
    with _storage_errors(f"{directory}: cannot be read"):
        handler = ocp.PyTreeCheckpointHandler()
        found = flatten(handler.metadata(as_path(directory)).tree)
    _compare(directory, declarations, found)
    wanted = {
        name: np.zeros(declaration.shape, declaration.dtype) if name in chosen else ocp.PLACEHOLDER
        for name, declaration in declarations.items()
    }
    arguments = dict.fromkeys(wanted, ocp.RestoreArgs(restore_type=np.ndarray))
    restore = ocp.args.PyTreeRestore(unflatten(wanted), restore_args=unflatten(arguments))
    with _storage_errors(f"{directory}: cannot be read"):
        values = flatten(handler.restore(as_path(directory), args=restore))
    return {name: np.asarray(values[name]) for name in chosen}


def has_optimizer(path: str) -> bool:
    """Returns whether a checkpoint (what `resolve` returned) holds an optimizer's state."""
    return as_path(f"{path}/{OPTIMIZER}").exists()


def restore_optimizer(path: str, abstract: Any) -> Any:
    """Reads optimizer state into the tree and the shardings of `abstract`.

    Args:
      path: what `resolve` returned.
      abstract: tree of `jax.ShapeDtypeStruct` with shardings: `jax.eval_shape(tx.init, …)`.

    Returns:
      A tree of the same structure (optax's own tuples and all).

    Raises:
      UserError: the checkpoint holds none, or that of another optimizer (names the leaf).
    """
    directory = f"{path}/{OPTIMIZER}"
    if not has_optimizer(path):
        raise UserError(
            f"{path}: holds no optimizer state (a grown checkpoint has none by default); start a "
            "run from it with config.init.start_from, and config.init.growth.optimizer=reset"
        )
    named = named_leaves(abstract)
    values = _restore(directory, named)
    return jax.tree.unflatten(jax.tree.structure(abstract), [values[name] for name in named])


def _checkpointer() -> ocp.AsyncCheckpointer:
    def arrays() -> ocp.PyTreeCheckpointHandler:
        # Random bits do not compress; trying costs most of the time of a save.
        return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False)

    lineage = ocp.JsonCheckpointHandler(filename=layout.LINEAGE_FILE)
    handlers = {
        PARAMS: arrays(),
        OPTIMIZER: arrays(),
        LINEAGE: lineage,
        MATRICES: _FilesHandler(),
    }
    return ocp.AsyncCheckpointer(ocp.CompositeCheckpointHandler(**handlers))


def _save_args(params: Any, optimizer: Any, lineage: Lineage) -> ocp.args.Composite:
    items = {PARAMS: _tree_save(flatten(params)), LINEAGE: ocp.args.JsonSave(lineage.to_json())}
    if optimizer is not None:
        items[OPTIMIZER] = _tree_save(named_leaves(optimizer))
    if lineage.matrices:
        files = {f"{digest}.npz": m.to_bytes() for digest, m in lineage.matrices.items()}
        items[MATRICES] = _FilesSave(files)
    return ocp.args.Composite(**items)


def _tree_save(leaves: Mapping[str, Any]) -> ocp.args.PyTreeSave:
    # Orbax cannot save leaves of size zero (a model without layers has them in its optimizer).
    stored = {path: leaf for path, leaf in leaves.items() if leaf.size}
    options = {
        # The default chunk is the device's shard, all layers of it: growth copies layers.
        path: ocp.SaveArgs(shard_axes=(0,), chunk_byte_size=CHUNK_BYTES)
        if LAYERS in path.split("/")
        else ocp.SaveArgs(chunk_byte_size=CHUNK_BYTES)
        for path in stored
    }
    return ocp.args.PyTreeSave(unflatten(stored), save_args=unflatten(options))


def _restore(directory: str, leaves: Mapping[str, Any]) -> dict[str, Any]:
    stored = {path: leaf for path, leaf in leaves.items() if np.prod(leaf.shape)}
    with _storage_errors(f"{directory}: cannot be read"):
        handler = ocp.PyTreeCheckpointHandler()
        found = flatten(handler.metadata(as_path(directory)).tree)
    _compare(directory, stored, found)
    item = unflatten(stored)
    restore = ocp.args.PyTreeRestore(
        item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
    )
    with _storage_errors(f"{directory}: cannot be read"):
        values = flatten(handler.restore(as_path(directory), args=restore))
    empty = {path: leaf for path, leaf in leaves.items() if path not in stored}
    made = {
        path: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        for path, leaf in empty.items()
    }
    return values | made


def _compare(directory: str, wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for path in sorted(wanted.keys() | found.keys()):
        if path not in found:
            raise UserError(f"{directory}: {path}: is missing; the config describes another tree")
        if path not in wanted:
            raise UserError(
                f"{directory}: {path}: is on disk but not in the config's model or optimizer"
            )
        shapes = tuple(found[path].shape), tuple(wanted[path].shape)
        if shapes[0] != shapes[1]:
            raise UserError(
                f"{directory}: {path}: has shape {shapes[0]} on disk and {shapes[1]} by the "
                "config; use the config of the checkpoint, or grow it"
            )
        dtypes = np.dtype(found[path].dtype), np.dtype(wanted[path].dtype)
        if dtypes[0] != dtypes[1]:
            raise UserError(f"{directory}: {path}: is {dtypes[0]} on disk, {dtypes[1]} wanted")


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """Turns what Orbax and tensorstore raise for bad storage into one line.

    They raise ValueError for most, OSError for some and a bare Exception for a failed read.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if type(error) not in (Exception, ValueError, RuntimeError) and not isinstance(
            error, OSError
        ):
            raise
        line = first_line(error, most=10_000)
        # tensorstore tells causes from the outside in: the operating system's word comes last.
        reason = line if len(line) < 200 else f"… {line.partition(' [')[0][-160:]}"
        full = "no space left" in reason.lower()
        advice = "free space and start again" if full else "see whether the storage works"
        raise UserError(f"{what} ({reason}); {advice}") from error


def _remove_incomplete(directory: str) -> None:
    complete = {str(step) for step in layout.complete_steps(directory)}
    if not as_path(directory).exists():  # an empty folder of an object store does not exist
        return
    for path in as_path(directory).iterdir():
        if path.name not in complete:
            path.rmtree() if path.is_dir() else path.unlink()


def _remove(path: str) -> None:
    """Removes a checkpoint; cut short at any point it no longer looks complete."""
    (as_path(path) / LINEAGE / layout.LINEAGE_FILE).unlink(missing_ok=True)
    as_path(path).rmtree(missing_ok=True)


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
