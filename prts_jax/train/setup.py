"""The parts of a stage that stay the same while it trains: data, teacher, metrics, costs."""

import functools
import json
from dataclasses import dataclass
from typing import Any

import jax

from data_pipelines.batches.loader import TrainBatches
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.store import Checkpoints
from prts_jax.config import RunConfig, to_dict
from prts_jax.evaluate.perplexity import make_evaluator
from prts_jax.growth.leaf_text import leaf_text
from prts_jax.mesh import axis_size
from prts_jax.model.architecture import declare
from prts_jax.model.counts import six_n_d_per_token, training_flops_per_token
from prts_jax.paths import as_path, write_atomically
from prts_jax.train.batches import batch_at, evaluation_batches
from prts_jax.train.distill import Teacher, load_teacher
from prts_jax.train.freezing import frozen_layers
from prts_jax.train.job import Job
from prts_jax.train.metrics import MetricsLog, TerminalLine
from prts_jax.train.origin import Start
from prts_jax.train.progress import Costs
from prts_jax.train.record import Recorder
from prts_jax.train.saving import Saves, patiently
from prts_jax.train.stages import Stage, stage_file
from prts_jax.train.weights_and_biases import WandbRun


@dataclass(frozen=True)
class Setup:
    """The parts of a stage that stay the same while it trains.

    Attributes:
      log: receives the lines of metrics; None on all processes but the first.
    """

    stage: Stage
    job: Job
    mesh: jax.sharding.Mesh
    batches: TrainBatches
    checkpoints: Checkpoints
    optimizer: Any
    frozen: tuple[int, ...] | None
    teacher: Teacher | None
    costs: Costs
    evaluate: Any
    terminal: TerminalLine
    log: MetricsLog | None
    recorder: Recorder
    saves: Saves

    @property
    def config(self) -> RunConfig:
        """Config of the stage."""
        return self.stage.config

    def batch(self, origin: Lineage, step: int) -> dict[str, jax.Array]:
        """Returns the batch of a step of the stage; its data begin at the origin's position."""
        data = self.config.data
        position = origin.position + (step - origin.stage_step) * data.batch * data.length
        return batch_at(self.mesh, self.batches, position)

    @property
    def teacher_params(self) -> Any:
        """Parameters of the teacher; None without one."""
        return self.teacher.params if self.teacher else None


def set_up(
    stage: Stage,
    job: Job,
    mesh: jax.sharding.Mesh,
    batches: TrainBatches,
    checkpoints: Checkpoints,
    optimizer: Any,
    start: Start,
) -> Setup:
    """Loads the teacher, opens the metrics and writes config.json."""
    config, lineage = stage.config, start.lineage
    frozen = frozen_layers(config, lineage)
    teacher = load_teacher(lineage.teacher, config.model, mesh, config.data.length)
    if teacher:
        checkpoints.protect(teacher.path)  # a resume needs it
    costs = _costs(config, frozen, teacher)
    validation = evaluation_batches(config, axis_size(mesh, "batch"), batches.store)
    evaluate = None
    if validation is not None:
        evaluate = make_evaluator(config.model, config.compute, validation, mesh)
    terminal = TerminalLine(config.train.steps, jax.process_index() > 0, stage.name)
    log = _open_log(stage, job, start, terminal) if jax.process_index() == 0 else None
    recorder = Recorder(
        log,
        terminal,
        mesh.devices,
        costs.flops,
        lineage,
        batches.store.sources,
        config.train.max_skipped,
        config.logging.spike_deviations,
        job.heartbeat,
    )
    return Setup(
        stage=stage,
        job=job,
        mesh=mesh,
        batches=batches,
        checkpoints=checkpoints,
        optimizer=optimizer,
        frozen=frozen,
        teacher=teacher,
        costs=costs,
        evaluate=evaluate,
        terminal=terminal,
        log=log,
        recorder=recorder,
        saves=Saves(
            checkpoints,
            config.checkpoint,
            terminal.say,
            recorder.count_failed_save,
            recorder.paused,
        ),
    )


def _costs(config: RunConfig, frozen: tuple[int, ...] | None, teacher: Teacher | None) -> Costs:
    model, declarations = config.model, declare(config.model)
    flops = training_flops_per_token(model, declarations, config.data.length, frozen)
    six_n_d = six_n_d_per_token(declarations)
    if teacher is None:
        return Costs(flops, six_n_d)
    return Costs(flops + teacher.flops_per_token, six_n_d + teacher.six_n_d_per_token)


def _open_log(stage: Stage, job: Job, start: Start, terminal: TerminalLine) -> MetricsLog:
    """Opens the metrics and writes the stage's config, which readers of the metrics need."""
    config, restored = stage.config, start.lineage.step if start.resumed else None
    mirror = WandbRun(job.workdir, config) if config.logging.wandb else None
    tensorboard = config.logging.tensorboard
    log = MetricsLog(job.workdir, restored, tensorboard, job.check_lock, mirror, terminal.say)
    resolved = json.dumps(to_dict(config), indent=2)
    names = ["config.json"] if stage.count == 1 else ["config.json", stage_file(stage.index)]
    for name in names:
        write = functools.partial(write_atomically, as_path(job.workdir) / name, resolved)
        patiently(write, config.checkpoint.retry_minutes, terminal.say)
    return log


def announce(setup: Setup, start: Start) -> None:
    """Tells the user where the stage starts."""
    say, model = setup.terminal.say, setup.config.model
    say(
        f"{start.how}: {model.layers} layers × {model.embed}, step "
        f"{start.lineage.step}, mesh {dict(setup.mesh.shape)}, {jax.process_count()} process(es)"
    )
    if setup.log is not None and setup.log.lost:
        say(f"{setup.log.lost}; the key gap_after marks them")
    if start.growth_map is not None:
        say(str(start.growth_map))
        policy = setup.config.init.growth.optimizer
        say("\n".join(leaf_text(start.growth_map, declare(start.growth_map.target), policy)))
