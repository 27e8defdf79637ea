"""The stages of a run: selects the remaining ones and plans the growth between them."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from prts_jax.config import (
    ModelConfig,
    RunConfig,
    inherited_growth_keys,
    model_differences,
    stage_configs,
    to_dict,
)
from prts_jax.errors import UserError
from prts_jax.growth.gates import opening, refuse_shut
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import find, make_map
from prts_jax.model.architecture import architecture
from prts_jax.paths import as_path
from prts_jax.train.branch import branch_config
from prts_jax.train.freezing import layers_kept
from prts_jax.train.origin import Origin
from prts_jax.train.schedule import goes_on
from prts_jax.train.schedule_lengths import Span, resolve

_NO_SPAN = Span(0, 0, 0, 0, 1)


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      config: config of the stage; `train.steps` is its length, `model` the trained model. After
        exact growth in width the model has the norm epsilon that the growth scaled.
      index: index of the stage in the run, from 0, as in the lineage.
      count: number of stages of the run.
      growth_map: the map from the previous model to the stage's; None if the stage does not begin
        with growth, or has begun.
      span: steps and tokens of the stage in its lineage.
    """

    config: RunConfig
    index: int
    count: int
    growth_map: GrowthMap | None = None
    span: Span = _NO_SPAN

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


def remaining_stages(config: RunConfig, origin: Origin | None) -> tuple[Stage, ...]:
    """Returns the remaining stages of a run, beginning with the one to resume.

    The growth maps of all stages are made now, from model shapes alone, so that no stage fails
    after weeks of training.

    Args:
      config: config of the run.
      origin: result of `find_origin`.

    Returns:
      At least one stage; the last one if the run is finished.

    Raises:
      UserError: the origin is of a stage that the config does not have, or holds another model
        than `init.start_from` needs; or a growth is impossible.
    """
    configs = stage_configs(config)
    if config.init.branch_from and origin is not None:
        configs = (branch_config(configs, origin),)
    for stage_config in configs:  # refuses unknown names, also where nothing grows
        architecture(stage_config.model)
        find(stage_config.init.growth.operator)
    stages = [Stage(stage, index, len(configs)) for index, stage in enumerate(configs)]
    if origin is not None and origin.own:
        lineage = origin.lineage
        if lineage.stage >= len(stages):
            raise UserError(
                f"config.growth.stages: the checkpoints in {as_path(origin.path).parent} are of "
                f"stage {lineage.stage + 1}, and the config has {len(stages)}; give the stages "
                "that the run began with"
            )
        stages = stages[lineage.stage :]
        if lineage.stage_step >= stages[0].config.train.steps:
            stages = stages[1:] or stages  # the current stage is finished
    planned = []
    before = _before_first(origin)
    for stage in stages:
        with _named(stage):
            stage = _plan(stage, before)
        planned.append(stage)
        before = _after(stage, before)
    return _with_spans(planned, origin)


def _continues(stage: Stage, origin: Origin) -> bool:
    """Returns whether a stage goes on with its own steps: on resume, and as a branch."""
    return origin.is_of_stage(stage.index) or bool(stage.config.init.branch_from)


def _with_spans(stages: Sequence[Stage], origin: Origin | None) -> tuple[Stage, ...]:
    """Returns the stages with their spans and with the lengths of their schedules in steps."""
    step, tokens = 0, 0
    if origin is not None:
        lineage = origin.lineage
        step, tokens = lineage.step, lineage.tokens
        if _continues(stages[0], origin):
            record, data = lineage.growth_of_stage(), stages[0].config.data
            step -= lineage.stage_step
            trained = lineage.stage_step * data.batch * data.length
            tokens = record.tokens if record is not None else max(tokens - trained, 0)
    last = step + sum(stage.config.train.steps for stage in stages)
    with_spans = []
    for stage in stages:
        config = stage.config
        steps, of_step = config.train.steps, config.data.batch * config.data.length
        span = Span(step, steps, last, tokens, of_step)
        if not config.init.branch_from:
            with _named(stage):
                config = dataclasses.replace(config, schedule=resolve(config.schedule, span))
        with_spans.append(dataclasses.replace(stage, config=config, span=span))
        step, tokens = step + steps, tokens + steps * of_step
    return tuple(with_spans)


@dataclass(frozen=True)
class _Before:
    """The end of the previous stage.

    Attributes:
      origin: the checkpoint there; None for one that the run will save, and before a fresh start.
      model: its model; None before a fresh start.
      epsilons: norm epsilons of the models that growth has replaced. Exact growth in width scales
        the epsilon, and a config may still have the old value.
      shut: number of further steps until all gates of its growth are open.
    """

    origin: Origin | None
    model: ModelConfig | None
    epsilons: frozenset[float]
    shut: int


def _before_first(origin: Origin | None) -> _Before:
    if origin is None:
        return _Before(None, None, frozenset(), 0)
    lineage = origin.lineage
    opens = opening(lineage)
    return _Before(
        origin,
        lineage.model,
        frozenset(record.map.source.norm_eps for record in lineage.growth),
        opens.end - lineage.stage_step if opens else 0,
    )


def _plan(stage: Stage, before: _Before) -> Stage:
    """Returns a stage with the model that it trains and its growth map."""
    config, model, origin = stage.config, before.model, before.origin
    if model is not None and config.model.norm_eps in before.epsilons:
        restored = dataclasses.replace(config.model, norm_eps=model.norm_eps)
        config = dataclasses.replace(config, model=restored)
    stage = dataclasses.replace(stage, config=config)
    if origin is not None and _continues(stage, origin):
        # Resuming compares its model with the checkpoint's.
        return dataclasses.replace(stage, config=goes_on(config, origin.lineage))
    starts = stage.index == 0 and bool(config.init.start_from)
    if starts and origin is not None:
        _check_same_model(config.model, origin)
    # A first stage with `init.grow_from` must grow; later stages grow where the model differs.
    grows = bool(config.init.grow_from) if stage.index == 0 else config.model != model
    growth_map = _growth_map(stage, model, before) if grows and model is not None else None
    if config.train.trainable == "new" and not starts:
        layers_kept(growth_map)
    if growth_map is not None:
        config = dataclasses.replace(config, model=growth_map.target)
    just_grown = origin is not None and growth_map is None and origin.lineage.stage_step == 0
    config = goes_on(config, origin.lineage if origin is not None and just_grown else None)
    return dataclasses.replace(stage, config=config, growth_map=growth_map)


def _growth_map(stage: Stage, source: ModelConfig, before: _Before) -> GrowthMap:
    if before.origin is not None:
        refuse_shut(before.origin.lineage, before.origin.path)
    inherited = inherited_growth_keys(stage.config, stage.index)
    growth = to_dict(stage.config.init.growth)
    growth_map = make_map(source, stage.config.model, inherited=inherited, **growth)
    if before.shut > 0:
        raise UserError(
            f"the stage before it ends {before.shut} steps before the gates of its growth are "
            "open; lengthen it, or lower its init.growth.gate_steps"
        )
    return growth_map


def _after(stage: Stage, before: _Before) -> _Before:
    """Returns the end of a stage."""
    steps, model, origin = stage.config.train.steps, stage.config.model, before.origin
    if origin is not None and _continues(stage, origin):
        steps -= origin.lineage.stage_step
    growth_map = stage.growth_map
    if growth_map is None:
        return _Before(None, model, before.epsilons, before.shut - steps)
    opens = max((end for _, end in growth_map.gates.values()), default=0)
    epsilons = before.epsilons | {growth_map.source.norm_eps}
    return _Before(None, model, epsilons, opens - steps)


@contextlib.contextmanager
def _named(stage: Stage) -> Iterator[None]:
    """Puts the stage in front of a user's error, in a run of several stages."""
    try:
        yield
    except UserError as error:
        if not stage.name:
            raise
        raise UserError(f"config.growth.stages[{stage.index}]: {error}") from error


def _check_same_model(model: ModelConfig, origin: Origin) -> None:
    """Refuses a config that starts from a checkpoint of another model."""
    for name, ours, theirs in model_differences(model, origin.lineage.model):
        raise UserError(
            f"config.model.{name}: is {ours}, but {origin.path} has {theirs}; use the "
            "checkpoint's, or init.grow_from to grow it"
        )
