"""The stages of a run: selects the remaining ones and checks the growth between them."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.damage import agreed
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import (
    ModelConfig,
    RunConfig,
    inherited_growth_keys,
    stage_configs,
    to_dict,
)
from prts_jax.errors import UserError
from prts_jax.growth.gates import opening
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import find, make_map
from prts_jax.model.architecture import architecture
from prts_jax.paths import as_path
from prts_jax.train.freezing import layers_kept
from prts_jax.train.start import epsilons_before_growth


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      config: config of the stage; `train.steps` is its length.
      index: index of the stage in the run, from 0, as in the lineage.
      count: number of stages of the run.
    """

    config: RunConfig
    index: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether this is the last stage of the run."""
        return self.index == self.count - 1

    @property
    def name(self) -> str:
        """Display name such as "stage 2 of 3"; empty in a run of one stage."""
        return f"stage {self.index + 1} of {self.count}" if self.count > 1 else ""


def stage_file(index: int) -> str:
    """Returns the file in a workdir with the config of a stage; config.json has the newest's."""
    return f"config.stage_{index + 1}.json"


def remaining_stages(config: RunConfig, workdir: str) -> tuple[Stage, ...]:
    """Returns the remaining stages of a run, beginning with the one to resume.

    The lineage of the newest checkpoint has the current stage and its step. The growth of later
    stages is checked now, so that no stage fails after weeks of training: growth maps are made from
    model shapes alone, without arrays.

    Args:
      config: config of the run.
      workdir: directory of the run; the caller holds its lock.

    Returns:
      At least one stage; the last one if the run is finished.

    Raises:
      UserError: the newest checkpoint is of a stage that the config does not have, or a growth is
        impossible.
      DamagedError: the newest checkpoint is damaged.
    """
    configs = stage_configs(config)
    for stage_config in configs:  # refuses unknown names, also where nothing grows
        architecture(stage_config.model)
        find(stage_config.init.growth.operator)
    stages = [Stage(stage, index, len(configs)) for index, stage in enumerate(configs)]
    lineage = _newest_lineage(workdir)
    current = 0 if lineage is None else lineage.stage
    if current >= len(stages):
        raise UserError(
            f"config.growth.stages: the checkpoints in {workdir} are of stage {current + 1}, "
            f"and the config has {len(stages)}; give the stages that the run began with"
        )
    stages = stages[current:]
    if lineage is not None and lineage.stage_step >= stages[0].config.train.steps:
        stages = stages[1:] or stages  # the current stage is finished
    _check_growth(stages, lineage)
    return tuple(stages)


def _newest_lineage(workdir: str) -> Lineage | None:
    checkpoints = str(as_path(workdir) / layout.CHECKPOINTS)
    with agreed():
        step = layout.newest_step(checkpoints)
        return None if step is None else layout.read_lineage(f"{checkpoints}/{step}")


def _check_growth(stages: Sequence[Stage], lineage: Lineage | None) -> None:
    """Makes the growth map of every later stage from model shapes, and raises its errors."""
    model = None if lineage is None else lineage.model
    # Exact growth in width changes the norm's epsilon, but the config may have the old value.
    epsilons = set() if lineage is None else epsilons_before_growth(lineage)
    shut = 0  # steps until all gates are open, counted from the end of the previous stage
    for stage in stages:
        steps = stage.config.train.steps
        if lineage is not None and lineage.stage == stage.index:
            opens = opening(lineage)
            shut = opens.end - steps if opens else 0
            continue  # a resumed stage has already grown
        if model is None and not stage.config.init.grow_from:
            model = stage.config.model
            if stage.config.train.trainable == "new" and not stage.config.init.start_from:
                layers_kept(None)
            continue
        try:
            growth_map = _growth_map(stage, model, epsilons)
            if stage.config.train.trainable == "new":
                layers_kept(growth_map)
        except UserError as error:
            where = f"config.growth.stages[{stage.index}]: " if stage.name else ""
            raise UserError(f"{where}{error}") from error
        if growth_map is not None:
            if shut > 0:
                raise UserError(
                    f"config.growth.stages[{stage.index}]: the stage before it ends {shut} steps "
                    "before the gates of its growth are open; lengthen it, or lower its "
                    "init.growth.gate_steps"
                )
            epsilons.add(growth_map.source.norm_eps)
            model = growth_map.target
            shut = max((end for _, end in growth_map.gates.values()), default=0)
        shut -= steps


def _growth_map(
    stage: Stage, source: ModelConfig | None, epsilons: Collection[float]
) -> GrowthMap | None:
    config = stage.config
    if source is None:
        lineage = layout.read_lineage(layout.resolve(config.init.grow_from))
        source, epsilons = lineage.model, epsilons_before_growth(lineage)
    target = config.model
    if target.norm_eps in epsilons:
        target = dataclasses.replace(target, norm_eps=source.norm_eps)
    if source == target:
        return None
    inherited = inherited_growth_keys(config, stage.index)
    return make_map(source, target, inherited=inherited, **to_dict(config.init.growth))
