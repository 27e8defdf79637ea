"""The checkpoint from which a stage starts, and the state before its first step."""

from dataclasses import dataclass

import jax

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.damage import DamagedError, agreed
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.removal import set_aside
from prts_jax.config import DataConfig, RunConfig, stage_configs
from prts_jax.growth.map import GrowthMap
from prts_jax.paths import as_path
from prts_jax.processes import all_processes
from prts_jax.train.metrics import TerminalLine
from prts_jax.train.state import TrainState


@dataclass(frozen=True)
class Origin:
    """A checkpoint from which a stage resumes, grows or starts.

    Attributes:
      path: directory of the checkpoint.
      lineage: its lineage.
      own: whether it is in the run's own workdir.
    """

    path: str
    lineage: Lineage
    own: bool

    def is_of_stage(self, index: int) -> bool:
        """Returns whether this run saved the checkpoint in the stage with this index."""
        return self.own and self.lineage.stage == index

    def begins_fine_tuning(self, data: DataConfig) -> bool:
        """Returns whether a stage on `data` starts to fine-tune a pretrained model."""
        return data.instructions and not self.lineage.config["data"].get("instructions", False)


@dataclass(frozen=True)
class Start:
    """The state and lineage before the first step of a stage.

    Attributes:
      how: description of the source of parameters and data for the user.
      state: training state on the mesh.
      lineage: lineage of the state.
      resumed: whether the run continues from a checkpoint in its own workdir.
      growth_map: the map that has just grown the parameters; None without growth.
    """

    how: str
    state: TrainState
    lineage: Lineage
    resumed: bool = False
    growth_map: GrowthMap | None = None


def find_origin(config: RunConfig, workdir: str) -> Origin | None:
    """Returns the checkpoint from which a run starts; None if it starts fresh.

    The run's own newest checkpoint comes before those that `init` names, so that the
    command that started a run also resumes it.

    Args:
      config: config of the run.
      workdir: directory of the run; the caller holds its lock.

    Raises:
      DamagedError: the checkpoint is damaged, see `leave_damaged`.
      UserError: `init` names no checkpoint, or only damaged checkpoints are left in the workdir.
      StorageError: the storage failed.
    """
    init = stage_configs(config)[0].init
    named = init.grow_from or init.start_from or init.branch_from
    origin = newest_origin(workdir)
    if origin is not None or not named:
        return origin
    with agreed():
        path = layout.resolve(named)
        return Origin(path, layout.read_lineage(path), own=False)


def newest_origin(workdir: str) -> Origin | None:
    """Returns a run's own newest checkpoint; None if it has none. Raises as `find_origin`."""
    directory = str(as_path(workdir) / layout.CHECKPOINTS)
    with agreed():
        step = layout.newest_step(directory)
        if step is None:
            return None
        path = f"{directory}/{step}"
        return Origin(path, layout.read_lineage(path), own=True)


def leave_damaged(workdir: str, damage: DamagedError) -> None:
    """Moves the damaged newest checkpoint of a run aside and says so; the run then begins again.

    The run repeats the steps since the checkpoint before, with the same results.

    Raises:
      DamagedError: the damaged checkpoint is not the run's, or no other is left.
    """
    with all_processes():
        if jax.process_index() == 0:
            directory = str(as_path(workdir) / layout.CHECKPOINTS)
            TerminalLine(0, False).say(set_aside(directory, damage))


def name_foreign_entries(workdir: str) -> None:
    """Names the entries of a run's `checkpoints` directory that belong to somebody else."""
    directory = str(as_path(workdir) / layout.CHECKPOINTS)
    foreign = layout.contents(directory).foreign
    if foreign:
        text = f"{directory}: leaving alone what is no checkpoint: {', '.join(foreign)}"
        TerminalLine(0, jax.process_index() > 0).say(text)
