"""The initial state of a stage: resumed, grown, started from a checkpoint or fresh."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.store.several import Stores
from data_pipelines.store.store import TokenStore
from prts_jax import tree
from prts_jax.checkpoint import restore
from prts_jax.checkpoint.damage import agreed
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.store import Checkpoints
from prts_jax.checkpoint.tokenizer import special_ids_of
from prts_jax.config import RunConfig, to_dict
from prts_jax.evaluate.store_tokenizer import check_same_tokenizer, check_store_tokenizer
from prts_jax.growth.map import GrowthMap
from prts_jax.mesh import abstract_params, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import init_params
from prts_jax.special_ids import of_store
from prts_jax.train import moving_average, scaling
from prts_jax.train.ancestor import grow_from, start_from
from prts_jax.train.batches import check_batches
from prts_jax.train.changes import BRANCH_CHANGES, check_names, config_changes
from prts_jax.train.data_position import data_position
from prts_jax.train.distill import choose_teacher, find_teacher
from prts_jax.train.learn import Learn, Learned, learn
from prts_jax.train.metrics import TerminalLine
from prts_jax.train.origin import Origin, Start
from prts_jax.train.stages import Stage
from prts_jax.train.state import (
    TrainState,
    abstract_optimizer,
    fresh_state,
    stage_step_array,
)
from prts_jax.train.stopping import Stopping


def begin(
    stage: Stage,
    origin: Origin | None,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    batches: TrainBatches,
    checkpoints: Checkpoints,
    allow_change: Collection[str] = (),
    stopping: Stopping = lambda: False,
) -> Start:
    """Returns the state and lineage from which a stage trains on.

    There are four cases:
      1. The origin is a checkpoint of this stage, or the trunk of a branch: the stage resumes.
      2. The stage has a growth map: parameters grown on the mesh, with a fresh or, unless
         `init.growth.optimizer` is "reset", a grown optimizer state. Data continue at the next
         token.
      3. Any other origin: unchanged parameters; otherwise as 2.
      4. No origin: fresh parameters from `init.seed`.

    Args:
      stage: from `remaining_stages`.
      origin: the checkpoint that the stage starts from; None without one.
      mesh: mesh for the state.
      optimizer: optimizer of the stage.
      batches: the training data; the store must have the fingerprint in the origin's lineage.
      checkpoints: checkpoints of the workdir.
      allow_change: dotted config keys that may differ from the origin's. A stage that follows
        another of its run may also change its data.
      stopping: tells after each step of learning a growth map whether to stop.

    Raises:
      UserError: the checkpoint does not match the config, or `allow_change` has an unknown key.
      DamagedError: the checkpoint is damaged, see `leave_damaged`.
      DivergedError: the loss is not finite while a growth map is learned.
      Interrupted: SIGTERM came while a growth map was learned.
    """
    check_names(allow_change, stage.config)
    if origin is None:
        return _fresh(stage.config, mesh, optimizer, batches)
    checkpoints.carry_tokenizer(origin.path, origin.lineage)
    if origin.is_of_stage(stage.index):
        return _resume(stage.config, origin, mesh, optimizer, batches, allow_change)
    check_tokenizer(stage.config, batches.store, origin, allow_change)
    if stage.config.init.branch_from:
        return _branch(stage.config, origin, mesh, optimizer, batches, allow_change)
    if origin.own:
        allow_change = ("data.store",)
    if stage.growth_map is None:
        start = start_from(stage.config, origin, mesh, optimizer)
    else:
        workdir = checkpoints.workdir
        learning = _learning(stage.config, mesh, batches, allow_change, stopping, workdir)
        start = grow_from(stage.config, stage.growth_map, origin, mesh, optimizer, learning)
    return _with_data(start, stage, origin, batches, allow_change)


def _fresh(
    config: RunConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    batches: TrainBatches,
) -> Start:
    """Initialises parameters from `init.seed`; the lineage begins here."""
    declarations = declare(config.model)
    shardings = param_shardings(mesh, declarations)
    params = init_params(
        declarations, config.model.layers, config.init.kind, config.init.seed, shardings
    )
    if config.scaling.kind != "none":
        params = scaling.scaled_params(params, scaling.multipliers(config))
    if config.init.zero_outputs:
        leaves = tree.flatten(params)
        silent = {path for path, leaf in declarations.items() if leaf.writes_stream}
        params = tree.unflatten(
            {p: jnp.zeros_like(leaf) if p in silent else leaf for p, leaf in leaves.items()}
        )
    lineage = Lineage(
        step=0,
        stage_step=0,
        config=to_dict(config),
        position=0,
        tokens=0,
        flops=0,
        flops_6nd=0,
        store=batches.store.fingerprint,
        growth=(),
        digests={},
        teacher=choose_teacher(config),
        special_ids=of_store(batches.store.directory, batches.store.eos_id),
    )
    state = fresh_state(params, optimizer, mesh)._replace(ema=moving_average.begun(config, params))
    return Start("fresh parameters", state, lineage)


def _resume(
    config: RunConfig,
    origin: Origin,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    batches: TrainBatches,
    allow_change: Collection[str],
) -> Start:
    """Resumes from a checkpoint of the same run and stage."""
    path, lineage = origin.path, origin.lineage
    # Before the comparison of keys, because this error explains why the store differs.
    position, note, _ = data_position(lineage, config, batches, allow_change)
    changes = config_changes(lineage, config, batches.store.fingerprint, allow_change)
    # The config's model equals the checkpoint's or differs only by allowed changes.
    declarations = declare(config.model)
    abstract = abstract_params(declarations, mesh)
    params = restore.restore_params(path, abstract, declarations, lineage=lineage)
    moments = abstract_optimizer(optimizer, abstract, mesh)
    ema = moving_average.restored(config, path, lineage, abstract, declarations)
    state = TrainState(
        params,
        restore.restore_optimizer(path, moments, lineage),
        stage_step_array(lineage.stage_step, mesh),
        ema or moving_average.begun(config, params),
    )
    lineage = dataclasses.replace(
        lineage,
        config=to_dict(config),
        position=position,
        store=batches.store.fingerprint,
        changes=(*lineage.changes, *changes),
        teacher=find_teacher(config, lineage),
    )
    return Start(f"resumed from {path}; {note}", state, lineage, resumed=True)


def _branch(
    config: RunConfig,
    origin: Origin,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    batches: TrainBatches,
    allow_change: Collection[str],
) -> Start:
    """Takes over the whole state of another run's checkpoint."""
    allowed = (*allow_change, *BRANCH_CHANGES)
    start = _resume(config, origin, mesh, optimizer, batches, allowed)
    return dataclasses.replace(
        start,
        how=start.how.replace("resumed", "branched", 1),
        lineage=start.lineage.branched(origin.path),
        resumed=False,
    )


def _learning(
    config: RunConfig,
    mesh: Mesh,
    batches: TrainBatches,
    allow_change: Collection[str],
    stopping: Stopping,
    workdir: str,
) -> Learn:
    """Returns a function that learns the matrices of a growth map on this run's data."""

    def learn_map(growth_map: GrowthMap, source_params: Any, source: Lineage) -> Learned:
        if growth_map.matrices is None:
            return Learned(growth_map, source, {})
        position, _, changes = data_position(source, config, batches, allow_change)
        source = dataclasses.replace(
            source,
            config={**source.config, "data": to_dict(config.data)},
            position=position,
            store=batches.store.fingerprint,
            changes=(*source.changes, *changes),
        )
        say = TerminalLine(0, jax.process_index() > 0).say
        return learn(
            config, mesh, batches, growth_map, source_params, source, say, stopping, workdir
        )

    return learn_map


def _with_data(
    start: Start,
    stage: Stage,
    origin: Origin,
    batches: TrainBatches,
    allow_change: Collection[str],
) -> Start:
    """Returns the start of a new stage, whose data continue at the origin's next token."""
    config, before = stage.config, start.lineage
    if origin.begins_fine_tuning(config.data):
        before = before.fine_tuned()
        allow_change = (*allow_change, "data.store")
    position, note, changes = data_position(before, config, batches, allow_change)
    lineage = dataclasses.replace(
        before,
        config=to_dict(config),
        position=position,
        store=batches.store.fingerprint,
        changes=(*before.changes, *changes),
        stage=stage.index,
        teacher=choose_teacher(config, origin.path if start.growth_map else ""),
        special_ids=special_ids_of(origin.path, before),
    )
    return dataclasses.replace(start, how=f"{start.how}; {note}", lineage=lineage)


def check_stores(stages: Sequence[Stage], origin: Origin | None, allow: Collection[str]) -> None:
    """Checks the stores of all stages of a run before the first one trains.

    Args:
      stages: the remaining stages.
      origin: the checkpoint that the first one starts from; None without one.
      allow: `allow_change` of the run.

    Raises:
      UserError: stores do not fit their stage, or have another tokenizer than the model.
    """
    if len(stages) == 1:
        return
    stores = [check_batches(stage.config) for stage in stages]
    for stage, store in zip(stages[1:], stores[1:], strict=True):
        if origin is not None:
            with agreed():
                check_tokenizer(stage.config, store, origin, allow)
        elif not (stage.config.data.instructions and "data.store" in allow):
            check_same_tokenizer("config.data.train", store, stores[0])


def check_tokenizer(
    config: RunConfig, store: TokenStore | Stores, origin: Origin, allow_change: Collection[str]
) -> None:
    """Checks that a store on which a checkpoint may train has the checkpoint's tokenizer.

    `data_position` refuses all other stores. With --allow_change=data.store, fine-tuning may
    use another tokenizer.

    Raises:
      UserError: the store has another tokenizer.
    """
    fine_tuning, allowed = origin.begins_fine_tuning(config.data), "data.store" in allow_change
    if fine_tuning and not allowed:
        way_out = ", or pass --allow_change=data.store"
        check_store_tokenizer(origin.path, origin.lineage, store, way_out)
    elif not fine_tuning and (allowed or origin.own or not origin.lineage.store):
        check_store_tokenizer(origin.path, origin.lineage, store)
