"""The loop over the steps of a stage: dispatch, log, evaluate and save."""

import contextlib
import dataclasses
import functools
import gc
import json
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

import jax

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.compilation import compile_together
from prts_jax.config import to_dict
from prts_jax.errors import Interrupted, StorageError
from prts_jax.feed import prefetch
from prts_jax.paths import as_path, write_atomically
from prts_jax.processes import all_processes
from prts_jax.train.progress import Progress, advance
from prts_jax.train.saving import kept_every, patiently
from prts_jax.train.setup import Setup
from prts_jax.train.spikes import to_keep
from prts_jax.train.step import make_train_step


def run_stage(setup: Setup, progress: Progress) -> None:
    """Trains from the first step of the progress to the last step of the stage.

    Raises:
      Interrupted: the process received SIGTERM; the state was saved.
      DivergedError: more steps than `train.max_skipped` were skipped.
    """
    origin = progress.lineage
    first, stop = origin.stage_step, setup.config.train.steps
    stream = prefetch(lambda step: setup.batch(origin, step), first, stop)
    with contextlib.closing(stream), _few_collections() as freeze:
        progress = _before_first_step(setup, progress)
        compiled = _compile(setup, progress, setup.batch(origin, first)) if first < stop else None
        setup.recorder.restart_clock()
        for batch in stream:
            if progress.all_gates_open:  # later steps are compiled without gates
                progress = dataclasses.replace(progress, opening=None)
                compiled = _compile(setup, progress, batch)
            progress = _step(setup, compiled, progress, batch)
            if progress.lineage.stage_step == first + 2:
                freeze()
            # SIGTERM at the end of a stage also stops the run, unless the stage is the last.
            last = progress.lineage.stage_step == stop and setup.stage.is_last
            interrupted = setup.job.stopping() and not last
            progress = _after_step(setup, progress, interrupted)
            if interrupted:
                _stop_early(setup, progress.lineage)
    _finish(setup, progress)


@contextlib.contextmanager
def _few_collections() -> Iterator[Callable[[], None]]:
    """Yields a function that exempts all objects so far from garbage collection.

    A collection visits every object, some 10^6 after imports and compilation, and holds up the
    dispatch of steps. At the end all objects are collected as before.
    """

    def freeze() -> None:
        gc.collect()
        gc.freeze()

    try:
        yield freeze
    finally:
        gc.unfreeze()


def _step(setup: Setup, compiled: Any, progress: Progress, batch: dict[str, jax.Array]) -> Progress:
    """Dispatches a step and reads the metrics of the step before."""
    data, lineage = setup.config.data, progress.lineage
    setup.job.profiler.between_steps(lineage.step, progress.state, setup.config.logging)
    annotation = jax.profiler.StepTraceAnnotation("train", step_num=lineage.step + 1)
    with jax.transfer_guard("disallow"), annotation:
        state, metrics = compiled(progress.state, batch, setup.teacher_params)
    setup.recorder.dispatched(metrics, lineage.position)
    tokens = setup.batches.tokens(lineage.position)
    lineage = advance(lineage, tokens, data.batch * data.length, setup.costs)
    return dataclasses.replace(progress, state=state, lineage=lineage)


def _after_step(setup: Setup, progress: Progress, interrupted: bool) -> Progress:
    """Writes the line, evaluates and saves where they are due."""
    config, lineage = setup.config, progress.lineage
    step = lineage.stage_step
    last = step == config.train.steps
    evaluating = last or _due(step, config.evaluation.every_steps)
    # The step of the whole lineage names checkpoints and decides which are kept.
    scheduled = _due(lineage.step, config.checkpoint.every_steps)
    if config.checkpoint.keep_every_tokens:
        scheduled |= _due(lineage.step, kept_every(config))
    logging, must = _due(step, config.logging.every_steps), last or interrupted
    with_line = evaluating or scheduled or logging or must
    setup.saves.after_step(with_line)
    saving = with_line and setup.saves.due(scheduled, logging, must)
    if with_line:
        setup.recorder.line_due(lineage)
    if evaluating or saving or scheduled:
        progress, metrics = _validate(setup, progress) if evaluating else (progress, {})
        setup.recorder.settle(metrics)
    if saving:
        lineage = dataclasses.replace(
            progress.lineage,
            skipped=setup.recorder.skipped,
            recent_losses=to_keep(progress.state.losses),
        )
        progress = dataclasses.replace(progress, lineage=lineage)
        _save(setup, progress)
    return progress


def _compile(setup: Setup, progress: Progress, batch: dict[str, jax.Array]) -> Any:
    """Compiles the step for batches of this shape; excludes the time from the rates."""
    began = time.perf_counter()
    opening = progress.opening
    record = progress.lineage.growth_of_stage()
    asymmetric = record is not None and record.optimizer == "asymmetric"
    step = make_train_step(
        setup.config,
        setup.optimizer,
        grown_at=progress.lineage.step - progress.lineage.stage_step,
        sources=len(setup.batches.store.sources),
        frozen=setup.frozen,
        teacher=setup.teacher.model if setup.teacher else None,
        gates=opening.at if opening else None,
        asymmetric=record.map if record is not None and asymmetric else None,
    )
    with setup.recorder.paused("compiling"):
        flags = setup.config.compute.tpu_flags
        compiled = compile_together(
            step, progress.state, batch, setup.teacher_params, tpu_flags=flags
        )
    gated = ", gates opening" if opening else ""
    setup.terminal.say(f"compiled the train step in {time.perf_counter() - began:.1f} s{gated}")
    return compiled


def _validate(setup: Setup, progress: Progress) -> tuple[Progress, dict[str, float]]:
    """Returns the progress with its evaluation in the lineage, and the metrics for the line."""
    if setup.evaluate is None:
        return progress, {}
    with setup.recorder.paused("evaluation"):
        result = setup.evaluate(progress.state.params, progress.gates())
        metrics: dict[str, float] = result.metrics(setup.config.evaluation.blocks)
        if progress.state.ema is not None:
            average = setup.evaluate(progress.state.ema, progress.gates())
            metrics["validation_loss_ema"] = average.loss
    evaluation = {"step": progress.lineage.step, **metrics}
    lineage = dataclasses.replace(progress.lineage, evaluation=evaluation)
    return dataclasses.replace(progress, lineage=lineage), metrics


def _before_first_step(setup: Setup, progress: Progress) -> Progress:
    """Writes the first line of a stage, or catches up on an evaluation of the restored step.

    The first line has the validation loss before any step, and the growth. An evaluation is missing
    from the restored checkpoint when the resumed run has another length, evaluation interval or
    validation store than the run that saved it.
    """
    lineage, config = progress.lineage, setup.config
    branches = [record for record in lineage.branches if record.step == lineage.step]
    if lineage.stage_step == 0 or branches:
        progress, metrics = _validate(setup, progress)
        extra: dict[str, Any] = dict(metrics)
        if lineage.growth and lineage.growth[-1].at_step == lineage.step:
            extra["growth"] = to_dict(lineage.growth[-1])
        if branches:
            extra["branch"] = to_dict(branches[-1])
        setup.recorder.line_due(progress.lineage)
        setup.recorder.settle(extra)
        return progress
    due = _due(lineage.stage_step, config.evaluation.every_steps)
    due |= lineage.stage_step == config.train.steps
    if due and lineage.evaluation.get("step") != lineage.step:
        progress, metrics = _validate(setup, progress)
        if setup.log is not None:
            setup.log.amend(lineage.step, metrics)
    return progress


def _save(setup: Setup, progress: Progress) -> None:
    """Starts to save a checkpoint, unless the step is saved; a failure is left to `setup.saves`."""
    step, state = progress.lineage.step, progress.state
    try:
        with all_processes():
            saved = setup.checkpoints.latest() == step
            if not saved:
                setup.job.check_lock()
            if not saved and setup.log is not None:
                setup.log.flush()
        if saved:
            setup.saves.succeeded()
            return
        with setup.recorder.paused("saving"):
            setup.checkpoints.save(step, state.params, state.optimizer, progress.lineage, state.ema)
        setup.saves.started()
    except StorageError as error:
        setup.saves.failed(error)


def _stop_early(setup: Setup, lineage: Lineage) -> NoReturn:
    if not setup.saves.settle():
        setup.saves.give_up(f"stopped by SIGTERM at step {lineage.step}")
    if setup.log is not None:
        setup.log.close()
    raise Interrupted(
        f"stopped by SIGTERM at step {lineage.step} and saved; the same command resumes"
    )


def _finish(setup: Setup, progress: Progress) -> None:
    """Waits for the last save and, after the last stage, writes DONE."""
    lineage = progress.lineage
    setup.saves.finish(lambda: _save(setup, progress), setup.job.stopping)
    if setup.log is None:
        return
    setup.log.close()
    if not setup.stage.is_last:
        setup.terminal.say(f"{setup.stage.name} is done: step {lineage.step}")
        return
    text = json.dumps({"step": lineage.step, "tokens": lineage.tokens}) + "\n"
    done = functools.partial(write_atomically, as_path(setup.job.workdir) / "DONE", text)
    patiently(done, setup.config.checkpoint.retry_minutes, setup.terminal.say)
    setup.terminal.say(
        f"done: step {lineage.step}, {lineage.tokens:,} tokens, "
        f"{lineage.flops:.3e} FLOPs (ancestors included)"
    )


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
