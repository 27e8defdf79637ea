"""A run and its stages: lock, origin, plan, and the start of each stage."""

import contextlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence

import jax

from prts_jax.checkpoint.damage import DamagedError
from prts_jax.checkpoint.layout import is_complete
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.lock import workdir_lock
from prts_jax.checkpoint.store import Checkpoints
from prts_jax.config import RunConfig
from prts_jax.errors import UserError
from prts_jax.growth.gates import opening
from prts_jax.mesh import axis_size, check_length, use_mesh
from prts_jax.paths import as_path
from prts_jax.processes import all_processes
from prts_jax.train.batches import training_batches
from prts_jax.train.compilation_cache import set_compilation_cache
from prts_jax.train.curve import describe, warnings
from prts_jax.train.heartbeat import Heartbeat
from prts_jax.train.job import Job
from prts_jax.train.metrics import TerminalLine
from prts_jax.train.optim import make_optimizer
from prts_jax.train.origin import (
    Origin,
    find_origin,
    leave_damaged,
    name_foreign_entries,
    newest_origin,
)
from prts_jax.train.profile import Profiler
from prts_jax.train.progress import Progress
from prts_jax.train.saving import kept_every
from prts_jax.train.setup import announce, set_up
from prts_jax.train.spikes import running_losses
from prts_jax.train.stage_loop import run_stage
from prts_jax.train.stages import Stage, remaining_stages
from prts_jax.train.start import begin, check_stores
from prts_jax.train.stopping import sigterm
from prts_jax.train.weights_and_biases import check_wandb


def train(config: RunConfig, workdir: str, allow_change: Collection[str] = ()) -> None:
    """Trains all stages of a run, resuming from the newest checkpoint in the workdir.

    Writes metrics.jsonl, checkpoints/<step>/, config.json and, at the end, DONE.

    Args:
      config: resolved config of the run.
      workdir: local directory or gs://…, shared by all processes.
      allow_change: config keys that may differ from the checkpoint's, see `start.begin`.

    Raises:
      UserError: the config cannot be run.
      Interrupted: the process received SIGTERM; the state was saved.
      DivergedError: more steps than `train.max_skipped` were skipped.
    """
    if is_complete(workdir):
        # The directory's own parameters would hide the checkpoints of a run inside it.
        raise UserError(
            f"--workdir={workdir}: is a checkpoint; name a new directory, and this one as "
            "config.init.start_from"
        )
    check_wandb(config)
    with contextlib.ExitStack() as stack:
        stopping, check_lock = stack.enter_context(sigterm()), stack.enter_context(_lock(workdir))
        heartbeat = stack.enter_context(Heartbeat(workdir).beating())
        profiler = stack.enter_context(Profiler(workdir).listening())
        job = Job(workdir, allow_change, stopping, check_lock, heartbeat, profiler)
        name_foreign_entries(workdir)
        set_compilation_cache(config.compute.compilation_cache, workdir)
        while True:
            try:
                return _train_stages(config, job)
            except DamagedError as damage:
                leave_damaged(workdir, damage)


def _train_stages(config: RunConfig, job: Job) -> None:
    origin = find_origin(config, job.workdir)
    stages = remaining_stages(config, origin)
    check_stores(stages, origin, job.allow_change)
    for stage in stages:
        if stage is not stages[0]:
            origin = newest_origin(job.workdir)  # saved by the stage before
        _train_stage(stage, stages if stage is stages[0] else (), origin, job)


def _say_schedules(stages: Sequence[Stage]) -> None:
    """Tells the user the learning rates of the stages, and what a schedule cannot do."""
    say = TerminalLine(0, jax.process_index() > 0).say
    for stage in stages:
        schedule, name = stage.config.schedule, f"{stage.name}: " if stage.name else ""
        say(f"{name}{describe(schedule, stage.span)}")
        for warning in warnings(schedule, stage.span, stage.growth_map is not None):
            say(f"{name}warning: {warning}")


def _train_stage(stage: Stage, planned: Sequence[Stage], origin: Origin | None, job: Job) -> None:
    """Trains one stage to its end and frees its device memory; says the `planned` schedules."""
    config, began = stage.config, time.perf_counter()
    keep, folder = config.checkpoint, str(as_path(job.workdir) / "checkpoints")
    with (
        use_mesh(config.mesh) as mesh,
        contextlib.closing(
            Checkpoints(folder, keep.keep, kept_every(config), keep.keep_every_hours)
        ) as checkpoints,
    ):
        check_length(mesh, config.data.length, config.compute.loss_chunks)
        batches = training_batches(config, axis_size(mesh, "batch"))
        optimizer = make_optimizer(config)
        start = begin(
            stage, origin, mesh, optimizer, batches, checkpoints, job.allow_change, job.stopping
        )
        if _finished(job.workdir, start.lineage, stage):
            return
        setup = set_up(stage, job, mesh, batches, checkpoints, optimizer, start)
        setup.recorder.begin(began)
        job.heartbeat.step(start.lineage.step)
        _say_schedules(planned)
        announce(setup, start)
        state = start.state._replace(losses=running_losses(config, start.lineage, mesh))
        progress = Progress(state, start.lineage, opening(start.lineage))
        del start, state  # its state is donated to the first step
        run_stage(setup, progress)


@contextlib.contextmanager
def _lock(workdir: str) -> Iterator[Callable[[], None]]:
    """Holds the workdir's lock in the first process; if it is taken, all processes fail.

    Yields:
      A function that raises an error if another process has taken the lock over.
    """
    with contextlib.ExitStack() as stack:
        check = None
        with all_processes():
            if jax.process_index() == 0:
                check = stack.enter_context(workdir_lock(workdir))
        yield check or (lambda: None)  # only the first process holds the lock


def _finished(workdir: str, lineage: Lineage, stage: Stage) -> bool:
    """Whether the run is finished; deletes DONE if the run has been extended."""
    done = as_path(workdir) / "DONE"
    if not done.exists():
        return False
    if stage.is_last and lineage.stage_step >= stage.config.train.steps:
        TerminalLine(0, jax.process_index() > 0).say(
            f"{workdir} is finished (step {lineage.step}); nothing to do"
        )
        return True
    if jax.process_index() == 0:
        done.unlink()
    return False
