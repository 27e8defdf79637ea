"""Saving checkpoints: those of a run, and single ones."""

import contextlib
import dataclasses
from typing import Any

import jax

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.background import BackgroundSave, try_to_create
from prts_jax.checkpoint.commit import refuse_existing
from prts_jax.checkpoint.damage import agreed
from prts_jax.checkpoint.digests import start_digests
from prts_jax.checkpoint.items import checkpointer, save_args, saving
from prts_jax.checkpoint.layout import (
    TOKENIZER,
)
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.removal import delete, remove, remove_unfinished
from prts_jax.checkpoint.retention import Retention
from prts_jax.checkpoint.tokenizer import check_tokenizer, file_digests, read_tokenizer
from prts_jax.errors import StorageError, UserError, storage_errors
from prts_jax.paths import as_path, is_remote, sync
from prts_jax.processes import all_processes, gather_texts


class Checkpoints:
    """The checkpoints of a run, `<directory>/<step>/`, opened by its only writer.

    Saves run in the background, one at a time; every process calls the same methods, and a save
    that fails on one has failed on all. Opening removes the rests of interrupted saves and
    removals, so hold `workdir_lock` first. It touches nothing else.

    Args:
      directory: the run's `checkpoints` directory, local or gs://.
      keep: number of newest checkpoints to keep; one more exists during a save.
      keep_every_steps: checkpoints at multiples of this step are never removed; 0: none.
      keep_every_hours: the first checkpoint, and those saved so long after the last one kept for
        this reason, are never removed; 0.0: none.
    """

    def __init__(
        self, directory: str, keep: int, keep_every_steps: int, keep_every_hours: float = 0.0
    ) -> None:
        self._directory = str(as_path(directory))
        seconds = 3600 * keep_every_hours
        self._retention = Retention(self._directory, keep, keep_every_steps, seconds)
        self._protected: set[int] = set()
        self._saving: int | None = None
        self._rests: set[int] = set()
        self._tokenizer: dict[str, bytes] = {}
        with all_processes(), storage_errors(f"{self._directory}: cannot be used"):
            if jax.process_index() == 0:
                as_path(self._directory).mkdir(parents=True, exist_ok=True)
                remove_unfinished(self._directory)
        self._background = BackgroundSave()

    def carry_tokenizer(self, checkpoint: str, lineage: Lineage) -> None:
        """Writes the tokenizer of a checkpoint, if it has one, into those saved from now on.

        Raises:
          DamagedError: its files are not what the lineage records.
        """
        with agreed():
            check_tokenizer(checkpoint, lineage)
            self._tokenizer = read_tokenizer(f"{checkpoint}/{TOKENIZER}")

    def save(
        self, step: int, params: Any, optimizer: Any, lineage: Lineage, ema: Any = None
    ) -> None:
        """Starts to save a checkpoint in the background; every process calls it.

        Waits for the earlier save and for the copy to the host; then the arrays may be donated.
        (On CPU Orbax writes from views, and JAX does not reuse a buffer that has views.)

        Args:
          step: the lineage's step; names the directory.
          params: nested dict of arrays.
          optimizer: any tree of arrays.
          lineage: its digests are replaced by those of the tokenizer, and of `params`,
            `optimizer` and `ema`, which their devices compute meanwhile.
          ema: nested dict as `params`, their moving average; None: the run has none.

        Raises:
          UserError: the step is already saved.
          StorageError: the earlier save failed, or this one cannot begin; earlier checkpoints stay
            complete, and a later save may work.
        """
        self.wait()
        with all_processes(), saving(f"checkpoint {self.path(step)}: could not be written"):
            if step in layout.contents(self._directory).steps:
                raise UserError(f"{self.path(step)}: exists already; a step is saved once")
            if jax.process_index() == 0:
                self._remove_rests()
                self._rests = {step}  # if it does not become complete
                try_to_create(self.path(step))
        of_params, of_optimizer = start_digests(params, optimizer)
        of_ema, _ = start_digests(ema or {}, None)
        lineage = dataclasses.replace(lineage, tokenizer=file_digests(self._tokenizer))

        def with_digests() -> Lineage:
            return dataclasses.replace(
                lineage,
                digests=of_params(),
                optimizer_digests=of_optimizer(),
                ema_digests=of_ema(),
            )

        arguments = save_args(params, optimizer, lineage, with_digests, self._tokenizer, ema)
        self._saving = step
        self._background.start(self.path(step), arguments)

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

    def failure(self) -> Exception | None:
        """Returns the error of the background save if this process knows it; does not wait."""
        return self._background.failure()

    def has_ended(self) -> bool:
        """Returns whether this process's part of the background save has ended; does not wait."""
        return self._saving is not None and self._background.has_ended()

    def check(self) -> bool:
        """Ends the background save as `wait`, if it has ended on all processes or failed on one.

        Returns:
          Whether no save runs any more.
        """
        if self._saving is None:
            return True
        state = "failed" if self.failure() else "ended" if self.has_ended() else ""
        states = gather_texts(state)
        if all(states) or "failed" in states:
            self.wait()
        return self._saving is None

    def wait(self) -> None:
        """Waits for the background save and removes checkpoints beyond `keep`.

        Raises:
          StorageError: the save failed, e.g. on a full disk, on this or another process. Its rests
            are removed, or before the next save; earlier checkpoints stay complete.
        """
        if self._saving is None:
            return
        step, self._saving = self._saving, None
        try:
            with all_processes():
                self._end(step)
        except StorageError:
            with contextlib.suppress(Exception):  # the storage may still be away
                self._remove_rests()
            raise
        finally:
            self._background.forget()

    def close(self) -> None:
        """Waits for the background save on this process alone, and stops its threads.

        Raises:
          StorageError: the save failed.
        """
        with contextlib.closing(self._background):
            if self._saving is not None:
                step, self._saving = self._saving, None
                self._end(step)

    def _end(self, step: int) -> None:
        self._background.wait()
        if jax.process_index() > 0:
            return
        with saving(f"{self._directory}: old checkpoints could not be removed"):
            sync(self._directory)
            if is_remote(self._directory):
                delete(as_path(f"{self.path(step)}{layout.SAVING}"))
            for old in self._retention.dropped(self.steps(), self._protected):
                remove(self._directory, old)

    def _remove_rests(self) -> None:
        """Removes what failed saves have left; a complete checkpoint is none."""
        if self._rests and jax.process_index() == 0:
            own = {str(step) for step in self._rests}
            for name in layout.contents(self._directory).unfinished:
                if name.partition(".")[0] in own:
                    delete(as_path(self._directory) / name)
        self._rests = set()


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
        saving(f"checkpoint {path}: could not be written"),
        contextlib.closing(checkpointer()) as writer,
    ):
        writer.save(path, args=save_args(params, None, lineage, lambda: lineage, {}))
        writer.wait_until_finished()
