"""Runs a study: each cell is a `prts train` of its own, a few at a time, until none is left."""

import contextlib
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from prts_jax import config as config_lib
from prts_jax.errors import Interrupted, UserError, first_line, storage_errors
from prts_jax.growth.operators import draws
from prts_jax.local_lock import local_lock
from prts_jax.paths import write_atomically
from prts_jax.report.runs import read_run
from prts_jax.study import results
from prts_jax.study.design import Cell, Folder, Study, base_of, check, ready
from prts_jax.study.progress import GridProgress

RESUMABLE = 75
"""Exit code of a `prts train` that goes on with the same command."""

POLL_SECONDS = 0.5


def resolved(
    study: Study, cell: Cell, losses: dict[str, float], folder: Folder
) -> config_lib.RunConfig:
    """Returns a cell's config with its seeds, rate and base."""
    changed = cell.arm.config.copy_and_resolve_references()
    with changed.unlocked():
        changed.data.seed = changed.init.seed = cell.seed
        if draws(changed.init.growth.operator) or changed.init.growth.noise:
            changed.init.growth.seed = cell.seed
        changed.schedule.peak = cell.peak
        if cell.arm.base:
            base = base_of(study, cell, losses)
            assert base is not None, "a cell that is ready has its base"
            if not math.isfinite(losses[base.name]):
                raise UserError(f"study: {base.name} diverged; give {base.arm.name} lower peaks")
            changed.init.grow_from = str(folder.run(base))
    return config_lib.resolve(changed)


def command(cell: Cell, folder: Folder) -> list[str]:
    """Returns the command that trains a cell; it resumes what is there."""
    train = [sys.executable, "-m", "prts_jax.cli.train"]
    return [*train, f"--config={folder.config(cell)}", f"--workdir={folder.run(cell)}"]


def execute(study: Study, workdir: str, jobs: int, say: Callable[[str], None]) -> dict[str, float]:
    """Trains every run that is not finished, `jobs` at a time; the same call goes on after a stop.

    Returns the last validation loss of each cell by name; infinite if it diverged. `study.json` is
    written whenever a run ends, so that a report shows what there is.

    Raises:
      UserError: an invalid study, a folder of another study or in use, a base that diverged at all
        of its rates, or a run that a user must correct.
      Interrupted: SIGTERM, or a run that asks to be started again; the same command goes on.
      StorageError: the disk failed.
    """
    check(study)
    folder = Folder(Path(workdir).absolute())
    losses: dict[str, float] = {}
    progress = GridProgress(study, folder, say)
    with local_lock(folder.root), _workers(folder) as workers:
        with storage_errors(f"{workdir}: the study cannot be written"):
            folder.create()
        while _start(study, losses, workers, jobs, progress) or workers.running():
            progress.tick(workers.running())
            time.sleep(POLL_SECONDS)
            for cell, code in workers.ended():
                losses[cell.name] = _loss_after(cell, code, folder)
                progress.ended(cell, losses[cell.name])
                results.write(study, losses, folder.root)
    results.write(study, losses, folder.root)
    return losses


def _start(
    study: Study, losses: dict[str, float], workers: "_Workers", jobs: int, progress: GridProgress
) -> bool:
    """Takes over finished runs and starts others up to `jobs`; returns whether it did either."""
    folder, running = workers.folder, {cell.name for cell in workers.running()}
    before = len(losses) + len(running)
    for cell in ready(study, losses):
        if cell.name in running:
            continue
        _write_config(study, cell, losses, folder)
        if (folder.run(cell) / "DONE").exists():
            losses[cell.name] = final_loss(folder.run(cell))
            progress.reused(cell)
        elif len(workers.running()) < jobs:
            workers.start(cell)
            progress.started(cell)
    return len(losses) + len(workers.running()) > before


def _write_config(study: Study, cell: Cell, losses: dict[str, float], folder: Folder) -> None:
    """Writes a cell's config; refuses a folder that holds this cell with another config."""
    path, wanted = folder.config(cell), resolved(study, cell, losses, folder)
    with storage_errors(f"{path}: cannot be written"):
        if not path.exists():
            write_atomically(path, json.dumps(config_lib.to_dict(wanted), indent=2))
        elif _read_config(path) != wanted:
            raise UserError(
                f"{path}: the study says something else now; give a new --workdir, or delete this "
                f"file and {folder.run(cell)}"
            )


def _read_config(path: Path) -> config_lib.RunConfig:
    try:
        values = json.loads(path.read_bytes())
        return config_lib.from_dict(config_lib.RunConfig, values)
    except (ValueError, RecursionError, UserError) as error:
        raise UserError(f"{path}: is damaged ({first_line(error)}); delete it") from error


def final_loss(run: Path) -> float:
    """Returns the last validation loss of a run, nats per token; infinite if it is no number.

    Raises:
      UserError: the run has none.
    """
    loss = read_run(str(run), run.name).last("validation_loss")
    if loss is None:
        raise UserError(f"{run}: has no validation loss; name data.validation in the study's arms")
    return loss if math.isfinite(loss) else math.inf


def _loss_after(cell: Cell, code: int, folder: Folder) -> float:
    """Returns the loss of a run whose command has ended.

    Raises:
      UserError: it ended with an error of the user's.
      Interrupted: it was stopped, and goes on with the same command.
    """
    if code == 0:
        return final_loss(folder.run(cell))
    lines = folder.log(cell).read_text(errors="replace").split("\n")
    last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
    if "has diverged" in last:
        return math.inf
    if code == RESUMABLE or code < 0:
        raise Interrupted(f"{cell.name} was stopped ({last}); the same command goes on")
    raise UserError(f"{cell.name} failed: {last}; its output is in {folder.log(cell)}")


class _Workers:
    """Commands that run at the same time."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder
        self._running: dict[str, tuple[Cell, subprocess.Popen[bytes]]] = {}

    def running(self) -> list[Cell]:
        return [cell for cell, _ in self._running.values()]

    def start(self, cell: Cell) -> None:
        line = command(cell, self.folder)
        with self.folder.log(cell).open("ab") as log:
            log.write(f"$ {shlex.join(line)}\n".encode())
            log.flush()
            process = subprocess.Popen(
                line,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"JAX_COMPILATION_CACHE_DIR": str(self.folder.compiled)} | os.environ,
            )
        self._running[cell.name] = cell, process

    def ended(self) -> Iterator[tuple[Cell, int]]:
        for name, (cell, process) in list(self._running.items()):
            code = process.poll()
            if code is not None:
                del self._running[name]
                yield cell, code

    def stop(self) -> None:
        """Asks the runs to save and end, and waits for them."""
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            process.wait()


@contextlib.contextmanager
def _workers(folder: Folder) -> Iterator[_Workers]:
    """Yields the workers; stops them on SIGTERM and on any error."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted("stopped by SIGTERM; the same command goes on")

    workers = _Workers(folder)
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield workers
    finally:
        signal.signal(signal.SIGTERM, before)
        workers.stop()
