"""The stages of a run, one after another: which are left, and what grows between them."""

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from prts_jax.checkpoint import layout
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ModelConfig, RunConfig, stage_configs, to_dict
from prts_jax.errors import UserError
from prts_jax.growth.gates import opening
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import find, make_map
from prts_jax.paths import as_path
from prts_jax.train.freezing import layers_kept
from prts_jax.train.start import epsilons_before_growth


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      config: what the stage is trained with; `train.steps` is its length.
      index: from 0; what the lineage records.
      count: stages of the run.
    """

    config: RunConfig
    index: int
    count: int

    @property
    def is_last(self) -> bool:
        """Whether the run is finished when the stage is."""
        return self.index == self.count - 1

    @property
    def name(self) -> str:
        """For people: "stage 2 of 3"; empty in a run of one stage."""
        return f"stage {self.index + 1} of {self.count}" if self.count > 1 else ""


def remaining_stages(config: RunConfig, workdir: str) -> tuple[Stage, ...]:
    """Returns the stages that a run still has to train, beginning with the one to resume.

    The newest checkpoint says which stage it is of, and how far that has come. Everything that can
    be known of the later stages is checked now, so that none is refused after weeks of training:
    growth maps are made from the models' shapes alone, without an array.

    Args:
      config: of the run.
      workdir: of the run, whose lock is held.

    Returns:
      At least one stage: of a finished run the last.

    Raises:
      UserError: a checkpoint of a stage that the config lacks, or a growth that cannot be.
    """
    configs = stage_configs(config)
    for stage_config in configs:
        find(stage_config.init.growth.operator)  # refuses an unknown name, also where nothing grows
    stages = [Stage(stage, at, len(configs)) for at, stage in enumerate(configs)]
    lineage = _newest_lineage(workdir)
    at = 0 if lineage is None else lineage.stage
    if at >= len(stages):
        raise UserError(
            f"config.growth.stages: the checkpoints in {workdir} are of stage {at + 1}, and the "
            f"config has {len(stages)}; give the stages that the run began with"
        )
    stages = stages[at:]
    if lineage is not None and lineage.stage_step >= stages[0].config.train.steps:
        stages = stages[1:] or stages  # the first has ended; the next begins where it did
    _check_growth(stages, lineage)
    return tuple(stages)


def _newest_lineage(workdir: str) -> Lineage | None:
    checkpoints = str(as_path(workdir) / layout.CHECKPOINTS)
    steps = layout.complete_steps(checkpoints)
    return layout.read_lineage(f"{checkpoints}/{steps[-1]}") if steps else None


def _check_growth(stages: Sequence[Stage], lineage: Lineage | None) -> None:
    """Makes the map of every growth to come, from model to model."""
    model = None if lineage is None else lineage.model
    # Exact growth in width changes the norm's epsilon, which the config need not know.
    epsilons = set() if lineage is None else epsilons_before_growth(lineage)
    shut = 0  # steps for which gates are not all open when a stage has ended
    for stage in stages:
        steps = stage.config.train.steps
        if lineage is not None and lineage.stage == stage.index:
            opens = opening(lineage)
            shut = opens.end - steps if opens else 0
            continue  # it resumes, and grows no more
        if model is None and not stage.config.init.grow_from:
            model = stage.config.model
            if stage.config.train.trainable == "new" and not stage.config.init.start_from:
                layers_kept(None)
            continue
        try:
            growth_map = _growth_map(stage.config, model, epsilons)
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
    config: RunConfig, source: ModelConfig | None, epsilons: Collection[float]
) -> GrowthMap | None:
    if source is None:
        lineage = layout.read_lineage(layout.resolve(config.init.grow_from))
        source, epsilons = lineage.model, epsilons_before_growth(lineage)
    target = config.model
    if target.norm_eps in epsilons:
        target = dataclasses.replace(target, norm_eps=source.norm_eps)
    if source == target:
        return None
    return make_map(source, target, **to_dict(config.init.growth))
