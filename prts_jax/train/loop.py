"""The training loop of a run and its stages; all choices are made before the loop starts."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Collection, Iterator
from typing import Any

import jax

from data_pipelines.batches.loader import TrainBatches
from prts_jax.checkpoint.damage import DamagedError
from prts_jax.checkpoint.digests import digests
from prts_jax.checkpoint.layout import is_complete
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.lock import workdir_lock
from prts_jax.checkpoint.store import Checkpoints
from prts_jax.config import RunConfig, to_dict
from prts_jax.errors import Interrupted, UserError
from prts_jax.evaluate.perplexity import make_evaluator
from prts_jax.feed import prefetch
from prts_jax.growth.gates import opening
from prts_jax.mesh import axis_size, compile_together, make_mesh
from prts_jax.model.counts import six_n_d_per_token, training_flops_per_token
from prts_jax.model.inputs import Gates
from prts_jax.paths import as_path, write_atomically
from prts_jax.processes import all_processes
from prts_jax.train.batches import batch_at, check_batches, evaluation_batches, training_batches
from prts_jax.train.distill import load_teacher
from prts_jax.train.freezing import frozen_layers
from prts_jax.train.metrics import MetricsLog, TerminalLine
from prts_jax.train.optim import make_optimizer
from prts_jax.train.record import Recorder
from prts_jax.train.stages import Stage, remaining_stages
from prts_jax.train.start import Start, begin, leave_damaged, name_foreign_entries
from prts_jax.train.step import make_train_step
from prts_jax.train.stopping import Stopping, sigterm


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
    """
    if is_complete(workdir):
        # The directory's own parameters would hide the checkpoints of a run inside it.
        raise UserError(
            f"--workdir={workdir}: is a checkpoint; name a new directory, and this one as "
            "config.init.start_from"
        )
    with sigterm() as stopping, _lock(workdir):
        name_foreign_entries(workdir)
        while True:
            try:
                return _train_stages(config, workdir, allow_change, stopping)
            except DamagedError as damage:
                leave_damaged(workdir, damage)


def _train_stages(
    config: RunConfig, workdir: str, allow_change: Collection[str], stopping: Stopping
) -> None:
    stages = remaining_stages(config, workdir)
    for stage in stages[1:]:  # fail now, not when the stage begins
        check_batches(stage.config)
    for stage in stages:
        _train_stage(stage, workdir, allow_change, stopping)


def _train_stage(
    stage: Stage, workdir: str, allow_change: Collection[str], stopping: Stopping
) -> None:
    """Trains one stage to its end and frees its device memory on return."""
    config = stage.config
    mesh = make_mesh(config.mesh)
    batches = training_batches(config, axis_size(mesh, "batch"))
    keep = config.checkpoint
    with (
        jax.set_mesh(mesh),
        contextlib.closing(
            Checkpoints(str(as_path(workdir) / "checkpoints"), keep.keep, keep.keep_every_steps)
        ) as checkpoints,
    ):
        optimizer = make_optimizer(config.optimizer)
        start = begin(
            config, mesh, optimizer, batches, checkpoints, allow_change, stage.index, stopping
        )
        if _finished(workdir, start.lineage, stage):
            return
        _Run(stage, workdir, mesh, batches, checkpoints, optimizer, start).run(stopping)


@contextlib.contextmanager
def _lock(workdir: str) -> Iterator[None]:
    """Holds the workdir's lock in the first process; if it is taken, all processes fail."""
    with contextlib.ExitStack() as stack:
        with all_processes():
            if jax.process_index() == 0:
                stack.enter_context(workdir_lock(workdir))
        yield


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


class _Run:
    """The objects of one stage, built once; `run` is the loop."""

    def __init__(
        self,
        stage: Stage,
        workdir: str,
        mesh: jax.sharding.Mesh,
        batches: TrainBatches,
        checkpoints: Checkpoints,
        optimizer: Any,
        start: Start,
    ) -> None:
        config = stage.config
        self.stage, self.config, self.workdir, self.mesh = stage, config, workdir, mesh
        self.batches, self.checkpoints = batches, checkpoints
        self.state, self.model, self.declarations = start.state, start.model, start.declarations
        self.lineage = start.lineage
        frozen = frozen_layers(config, start.lineage)
        self.flops_per_token = training_flops_per_token(
            start.model, start.declarations, config.data.length, frozen
        )
        self.optimizer, self.frozen = optimizer, frozen
        self.opening = opening(start.lineage)
        self.teacher = load_teacher(start.lineage.teacher, start.model, mesh, config.data.length)
        self.six_n_d_per_token = six_n_d_per_token(start.declarations)
        if self.teacher:
            checkpoints.protect(self.teacher.path)  # a resume needs it
            self.flops_per_token += self.teacher.flops_per_token
            self.six_n_d_per_token += self.teacher.six_n_d_per_token
        self.teacher_params = self.teacher.params if self.teacher else None
        self.evaluate = self._evaluator()
        quiet = jax.process_index() > 0
        self.terminal = TerminalLine(config.train.steps, quiet, stage.name)
        self.log: MetricsLog | None = None
        if not quiet:
            restored = start.lineage.step if start.resumed else None
            self.log = MetricsLog(workdir, restored, config.logging.tensorboard)
            resolved = to_dict(dataclasses.replace(config, model=start.model))
            write_atomically(as_path(workdir) / "config.json", json.dumps(resolved, indent=2))
        self.recorder = Recorder(
            self.log,
            self.terminal,
            mesh.devices,
            self.flops_per_token,
            start.lineage,
            batches.store.sources,
        )
        self.terminal.say(
            f"{start.how}: {start.model.layers} layers × {start.model.embed}, step "
            f"{self.lineage.step}, mesh {dict(mesh.shape)}, {jax.process_count()} process(es)"
        )
        if self.log is not None and self.log.lost:
            self.terminal.say(f"{self.log.lost}; the key gap_after marks them")
        if start.growth_map is not None:
            self.terminal.say(str(start.growth_map))

    def run(self, stopping: Stopping) -> None:
        config = self.config
        first, stop = self.lineage.stage_step, config.train.steps
        origin = self.lineage
        stream = prefetch(lambda step: self._batch(origin, step), first, stop)
        with contextlib.closing(stream):
            if first == 0:
                self._write_line()
            elif first == stop or _due(first, config.evaluation.every_steps):
                self._catch_up()
            compiled = self._compile(self._batch(origin, first)) if first < stop else None
            self.recorder.restart_clock()
            for batch in stream:
                if compiled is None or self._all_gates_open():
                    compiled = self._compile(batch)
                with jax.transfer_guard("disallow"):
                    self.state, metrics = compiled(self.state, batch, self.teacher_params)
                self.recorder.dispatched(metrics)  # reads the previous step's metrics
                self.lineage = self._advance(self.lineage)
                step = self.lineage.stage_step
                last = step == stop
                evaluating = last or _due(step, config.evaluation.every_steps)
                # The step of the whole lineage names checkpoints and decides which are kept.
                saving = last or _due(self.lineage.step, config.checkpoint.every_steps)
                # SIGTERM at the end of a stage also stops the run, unless the stage is the last.
                interrupted = stopping() and not (last and self.stage.is_last)
                if evaluating or saving or interrupted or _due(step, config.logging.every_steps):
                    self.recorder.line_due(self.lineage)
                if evaluating or saving or interrupted:
                    self.recorder.settle(self._validate() if evaluating else {})
                if saving or interrupted:
                    self._save()
                if interrupted:
                    self._stop_early()
        self._finish()

    def _batch(self, origin: Lineage, step: int) -> dict[str, jax.Array]:
        data = self.config.data
        position = origin.position + (step - origin.stage_step) * data.batch * data.length
        return batch_at(self.mesh, self.batches, position)

    def _all_gates_open(self) -> bool:
        """Whether the last gate has just opened; later steps are compiled without gates."""
        if self.opening is None or self.lineage.stage_step < self.opening.end:
            return False
        self.opening = None
        return True

    def _compile(self, batch: dict[str, jax.Array]) -> Any:
        """Compiles the step for batches of this shape; excludes the time from the rates."""
        began = time.perf_counter()
        step = make_train_step(
            self.model,
            self.config,
            self.optimizer,
            grown_at=self.lineage.step - self.lineage.stage_step,
            sources=len(self.batches.store.sources),
            frozen=self.frozen,
            teacher=self.teacher.model if self.teacher else None,
            gates=self.opening.at if self.opening else None,
        )
        with self.recorder.paused():
            compiled = compile_together(step, self.state, batch, self.teacher_params)
        gated = ", gates opening" if self.opening else ""
        self.terminal.say(f"compiled the train step in {time.perf_counter() - began:.1f} s{gated}")
        return compiled

    def _evaluator(self) -> Any:
        parts = axis_size(self.mesh, "batch")
        batches = evaluation_batches(self.config, parts, self.batches.store)
        if batches is None:
            return None
        return make_evaluator(self.model, self.config.compute, batches, self.mesh)

    def _validate(self) -> dict[str, float]:
        if self.evaluate is None:
            return {}
        with self.recorder.paused():
            metrics: dict[str, float] = self.evaluate(self.state.params, self._gates()).metrics()
        evaluation = {"step": self.lineage.step, **metrics}
        self.lineage = dataclasses.replace(self.lineage, evaluation=evaluation)
        return metrics

    def _gates(self) -> Gates | None:
        """Returns the gates of the next step as host values; None if all are open."""
        step = self.lineage.stage_step
        if self.opening is None or step >= self.opening.end:
            return None
        gates: Gates = jax.device_get(self.opening.at(step))
        return gates

    def _write_line(self) -> None:
        """Writes the first line of a stage: the validation loss before any step, and the growth."""
        extra: dict[str, Any] = dict(self._validate())
        if self.lineage.growth and self.lineage.growth[-1].at_step == self.lineage.step:
            extra["growth"] = to_dict(self.lineage.growth[-1])
        self.recorder.line_due(self.lineage)
        self.recorder.settle(extra)

    def _catch_up(self) -> None:
        """Runs an evaluation that is due at the restored step but missing from its checkpoint.

        This happens when the resumed run has another length, evaluation interval or validation
        store than the run that saved the step.
        """
        if self.lineage.evaluation.get("step") == self.lineage.step:
            return
        metrics = self._validate()
        if self.log is not None:
            self.log.amend(self.lineage.step, metrics)

    def _advance(self, lineage: Lineage) -> Lineage:
        tokens = self.batches.tokens(lineage.position)
        return dataclasses.replace(
            lineage,
            step=lineage.step + 1,
            stage_step=lineage.stage_step + 1,
            position=lineage.position + self.config.data.batch * self.config.data.length,
            tokens=lineage.tokens + tokens,
            flops=lineage.flops + tokens * self.flops_per_token,
            flops_6nd=lineage.flops_6nd + tokens * self.six_n_d_per_token,
        )

    def _save(self) -> None:
        if self.checkpoints.latest() == self.lineage.step:
            return
        if self.log is not None:
            self.log.flush()
        with self.recorder.paused():
            lineage = dataclasses.replace(
                self.lineage, digests=digests(self.state.params, self.declarations)
            )
            self.checkpoints.save(
                self.lineage.step, self.state.params, self.state.optimizer, lineage
            )

    def _stop_early(self) -> None:
        self.checkpoints.wait()
        if self.log is not None:
            self.log.close()
        raise Interrupted(
            f"stopped by SIGTERM at step {self.lineage.step} and saved; the same command resumes"
        )

    def _finish(self) -> None:
        self.checkpoints.wait()
        if self.log is None:
            return
        self.log.close()
        if not self.stage.is_last:
            self.terminal.say(f"{self.stage.name} is done: step {self.lineage.step}")
            return
        done = {"step": self.lineage.step, "tokens": self.lineage.tokens}
        write_atomically(as_path(self.workdir) / "DONE", json.dumps(done) + "\n")
        self.terminal.say(
            f"done: step {self.lineage.step}, {self.lineage.tokens:,} tokens, "
            f"{self.lineage.flops:.3e} FLOPs (ancestors included)"
        )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
