"""Saving and restoring checkpoints with Orbax: the only file that imports it."""

import contextlib
import dataclasses
import functools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.commit import refuse_existing
from prts_jax.checkpoint.damage import agreed, reading
from prts_jax.checkpoint.digests import (
    check_digests,
    check_paths,
    digests,
    optimizer_digests,
    start_digests,
)
from prts_jax.checkpoint.layout import (
    LINEAGE,
    MATRICES,
    OPTIMIZER,
    PARAMS,
    TOKENIZER,
    read_lineage,
    resolve,
)
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.removal import delete, remove, remove_unfinished
from prts_jax.checkpoint.tokenizer import check_tokenizer, file_digests, read_tokenizer
from prts_jax.declaration import LAYERS, Declaration
from prts_jax.errors import StorageError, UserError, first_line, storage_errors
from prts_jax.paths import as_path, is_remote, sync, sync_all
from prts_jax.processes import all_processes
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


class Checkpoints:
    """The checkpoints of a run, `<directory>/<step>/`, opened by its only writer.

    Saves run in the background, one at a time. Opening removes the rests of interrupted saves and
    removals, so hold `workdir_lock` first. It touches nothing else.

    Args:
      directory: the run's `checkpoints` directory, local or gs://.
      keep: number of newest checkpoints to keep; one more exists during a save.
      keep_every_steps: checkpoints at multiples of this step are never removed; 0: none.
    """

    def __init__(self, directory: str, keep: int, keep_every_steps: int) -> None:
        self._directory = str(as_path(directory))
        self._keep = keep
        self._keep_every_steps = keep_every_steps
        self._protected: set[int] = set()
        self._saving: int | None = None
        self._tokenizer: dict[str, bytes] = {}
        with all_processes(), storage_errors(f"{self._directory}: cannot be used"):
            if jax.process_index() == 0:
                as_path(self._directory).mkdir(parents=True, exist_ok=True)
                remove_unfinished(self._directory)
        self._checkpointer = _checkpointer()

    def carry_tokenizer(self, checkpoint: str, lineage: Lineage) -> None:
        """Writes the tokenizer of a checkpoint, if it has one, into those saved from now on.

        Raises:
          DamagedError: its files are not what the lineage records.
        """
        with agreed():
            check_tokenizer(checkpoint, lineage)
            self._tokenizer = read_tokenizer(f"{checkpoint}/{TOKENIZER}")

    def save(self, step: int, params: Any, optimizer: Any, lineage: Lineage) -> None:
        """Starts to save a checkpoint in the background; every process calls it.

        Waits for the earlier save and for the copy to the host; then the arrays may be donated.
        (On CPU Orbax writes from views, and JAX does not reuse a buffer that has views.)

        Args:
          step: the lineage's step; names the directory.
          params: nested dict of arrays.
          optimizer: any tree of arrays.
          lineage: its digests are replaced by those of the tokenizer, and of `params` and
            `optimizer`, which their devices compute meanwhile.

        Raises:
          UserError: the step is already saved.
          StorageError: this or the earlier save failed; earlier checkpoints stay complete.
        """
        self.wait()
        if step in layout.contents(self._directory).steps:
            raise UserError(f"{self.path(step)}: exists already; a step is saved once")
        of_params, of_optimizer = start_digests(params, optimizer)
        lineage = dataclasses.replace(lineage, tokenizer=file_digests(self._tokenizer))

        def with_digests() -> Lineage:
            return dataclasses.replace(
                lineage, digests=of_params(), optimizer_digests=of_optimizer()
            )

        arguments = _save_args(params, optimizer, lineage, with_digests, self._tokenizer)
        with _storage_errors(f"checkpoint {self.path(step)}: could not be written"):
            self._saving = step
            with all_processes():
                if jax.process_index() == 0:
                    _try_to_create(self.path(step))
            self._checkpointer.save(self.path(step), args=arguments)

    def latest(self) -> int | None:
        """Returns the newest complete step, or None."""
        steps = self.steps()
        return steps[-1] if steps else None

    def steps(self) -> list[int]:
        """Returns all complete steps, oldest first."""
        return layout.complete_steps(self._directory)

    @property
    def workdir(self) -> str:
        """The run's directory."""
        return str(as_path(self._directory).parent)

    def path(self, step: int) -> str:
        """Returns the directory of a step's checkpoint."""
        return f"{self._directory}/{step}"

    def protect(self, path: str) -> None:
        """Never removes the checkpoint at `path`; ignores paths outside this run."""
        self._protected |= {step for step in self.steps() if self.path(step) == path}

    def wait(self) -> None:
        """Waits for the background save and removes checkpoints beyond `keep`.

        Raises:
          StorageError: the save failed, e.g. on a full disk; earlier checkpoints stay complete.
        """
        with _storage_errors(f"checkpoint in {self._directory}: could not be written"):
            self._checkpointer.wait_until_finished()
            if jax.process_index() > 0 or self._saving is None:
                return
            sync(self._directory)
            if is_remote(self._directory):
                delete(as_path(f"{self.path(self._saving)}{layout.SAVING}"))
            self._saving = None
            for step in self._dropped(self.steps()):
                remove(self._directory, step)

    def close(self) -> None:
        """Calls `wait` and stops the background threads."""
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
    """Writes one checkpoint without optimizer state and waits for its completion.

    Args:
      path: directory of the new checkpoint; must not exist.
      params: nested dict of JAX or NumPy arrays.
      lineage: with the digests of `params`.

    Raises:
      UserError: `path` exists.
      StorageError: it cannot be written.
    """
    path = str(as_path(path))
    refuse_existing(path)
    with (
        _storage_errors(f"checkpoint {path}: could not be written"),
        contextlib.closing(_checkpointer()) as checkpointer,
    ):
        checkpointer.save(path, args=_save_args(params, None, lineage, lambda: lineage, {}))
        checkpointer.wait_until_finished()


def restore_params(
    path: str,
    abstract: Mapping[str, Any],
    declarations: Mapping[str, Declaration],
    verify: bool = True,
    lineage: Lineage | None = None,
) -> dict[str, Any]:
    """Reads parameters directly into the given shardings, which may differ from the saved ones.

    Args:
      path: returned by `resolve`.
      abstract: nested dict of `jax.ShapeDtypeStruct`, each with its sharding.
      declarations: path → declaration of the same parameters.
      verify: whether to compare digests of the values with those in the lineage.
      lineage: of the checkpoint; None reads it.

    Returns:
      Nested dict of arrays.

    Raises:
      UserError: tree, shape or dtype of the config differ from the checkpoint's (names the leaf and
        both shapes).
      DamagedError: files are missing or damaged, or values differ from those saved (names the leaf
        and the layer).
      StorageError: the storage failed.
    """
    lineage = lineage or read_lineage(path)
    with agreed():
        params = unflatten(_restore(path, PARAMS, flatten(abstract), lineage))
    if verify:
        check_digests(path, lineage.digests, digests(params, declarations))
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
    directory = f"{path}/{PARAMS}"
    handler = ocp.PyTreeCheckpointHandler()
    with _restoring(path, PARAMS):
        stored_leaves = flatten(handler.metadata(as_path(directory)).tree)
    _compare(directory, declarations, stored_leaves)
    wanted = {
        name: np.zeros(declaration.shape, declaration.dtype) if name in chosen else ocp.PLACEHOLDER
        for name, declaration in declarations.items()
    }
    arguments = dict.fromkeys(wanted, ocp.RestoreArgs(restore_type=np.ndarray))
    restore = ocp.args.PyTreeRestore(unflatten(wanted), restore_args=unflatten(arguments))
    with _restoring(path, PARAMS):
        values = flatten(handler.restore(as_path(directory), args=restore))
    return {name: np.asarray(values[name]) for name in chosen}


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


def _try_to_create(path: str) -> None:
    """Creates and removes the directory that Orbax makes for a save; on gs:// marks the save.

    Orbax makes it in the background, and where it cannot, its other threads wait for 300 s.
    """
    if is_remote(path):
        as_path(f"{path}{layout.SAVING}").write_text("a save is running or was interrupted")
        return
    probe = as_path(f"{path}.orbax-checkpoint-tmp")
    (probe / PARAMS / "d").mkdir(parents=True)
    (probe / PARAMS / "d" / "probe").write_bytes(b"probe")
    delete(probe)


def _checkpointer() -> ocp.AsyncCheckpointer:
    def arrays() -> ocp.PyTreeCheckpointHandler:
        # Weights hardly compress, and compression would take most of the time of a save.
        return ocp.PyTreeCheckpointHandler(use_ocdbt=True, use_zarr3=True, use_compression=False)

    handlers = {
        PARAMS: arrays(),
        OPTIMIZER: arrays(),
        LINEAGE: _FilesHandler(),
        MATRICES: _FilesHandler(),
        TOKENIZER: _FilesHandler(),
    }
    return ocp.AsyncCheckpointer(_SyncedHandler(**handlers))


def _save_args(
    params: Any,
    optimizer: Any,
    lineage: Lineage,
    complete: Callable[[], Lineage],
    tokenizer: Mapping[str, bytes],
) -> _SyncedSave:
    """Returns what Orbax saves; `complete` returns the lineage with its digests."""
    items = {
        PARAMS: _tree_save(flatten(params)),
        LINEAGE: _FilesSave({layout.LINEAGE_FILE: lambda: layout.sealed(complete())}),
    }
    if optimizer is not None:
        items[OPTIMIZER] = _tree_save(named_leaves(optimizer))
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


def _restore(
    checkpoint: str, item: str, leaves: Mapping[str, Any], lineage: Lineage
) -> dict[str, Any]:
    directory = f"{checkpoint}/{item}"
    stored = {path: leaf for path, leaf in leaves.items() if np.prod(leaf.shape)}
    handler = ocp.PyTreeCheckpointHandler()
    with _restoring(checkpoint, item):
        stored_leaves = flatten(handler.metadata(as_path(directory)).tree)
        saved = lineage.digests if item == PARAMS else lineage.optimizer_digests
        check_paths(checkpoint, item, saved, stored_leaves)
    _compare(directory, stored, stored_leaves)
    wanted = unflatten(stored)
    restore = ocp.args.PyTreeRestore(
        wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
    )
    with _restoring(checkpoint, item):
        values = flatten(handler.restore(as_path(directory), args=restore))
    empty = {path: leaf for path, leaf in leaves.items() if path not in stored}
    zeros = {
        path: jax.device_put(np.zeros(leaf.shape, leaf.dtype), leaf.sharding)
        for path, leaf in empty.items()
    }
    return values | zeros


@contextlib.contextmanager
def _restoring(checkpoint: str, item: str) -> Iterator[None]:
    """Converts the errors of a restore, see `damage.unreadable`.

    After the first error Orbax closes its event loop. Other reads that finish later cannot report
    to it, and Python would print a traceback for each of them.
    """
    hook = sys.unraisablehook

    def ignore_late_reads(late: Any) -> None:
        if "Event loop is closed" not in str(late.exc_value):
            hook(late)

    sys.unraisablehook = ignore_late_reads
    with reading(checkpoint, item, f"{checkpoint}/{item}"):
        yield
    sys.unraisablehook = hook  # after an error the reads are still running


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


@contextlib.contextmanager
def _storage_errors(what: str) -> Iterator[None]:
    """Converts errors of Orbax and tensorstore in a save to a StorageError of one line.

    They raise ValueError for most errors, OSError for some, and Exception for others.
    """
    try:
        yield
    except (UserError, StorageError):
        raise
    except Exception as error:
        if type(error) not in (Exception, ValueError, RuntimeError) and not isinstance(
            error, OSError
        ):
            raise
        line = first_line(error, most=10_000)
        # tensorstore lists causes from the outside in: the operating system's error comes last.
        reason = line if len(line) < 200 else f"… {line.partition(' [')[0][-160:]}"
        full = "no space left" in reason.lower()
        advice = "free space and start again" if full else "see whether the storage works"
        raise StorageError(f"{what} ({reason}); {advice}") from error
