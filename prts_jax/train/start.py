"""The initial state of a stage: resumed, next stage, grown, started from a checkpoint or fresh."""

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.several import short_fingerprint
from data_pipelines.store.store import SEPARATOR
from prts_jax import tree
from prts_jax.checkpoint import store as checkpoint_store
from prts_jax.checkpoint.damage import DamagedError, agreed
from prts_jax.checkpoint.layout import CHECKPOINTS, contents
from prts_jax.checkpoint.lineage import ChangeRecord, Lineage
from prts_jax.checkpoint.removal import set_aside
from prts_jax.checkpoint.store import Checkpoints
from prts_jax.checkpoint.tokenizer import special_ids_of
from prts_jax.config import DataConfig, ModelConfig, RunConfig, to_dict
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.evaluate.store_tokenizer import check_store_tokenizer
from prts_jax.growth.map import GrowthMap
from prts_jax.mesh import abstract_params, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import init_params
from prts_jax.paths import as_path
from prts_jax.processes import all_processes
from prts_jax.special_ids import of_store
from prts_jax.train import fine_tuning
from prts_jax.train.ancestor import Ancestor, grow_from, start_from
from prts_jax.train.distill import choose_teacher, find_teacher
from prts_jax.train.learn import Learn, Learned, learn
from prts_jax.train.metrics import TerminalLine
from prts_jax.train.state import (
    TrainState,
    abstract_optimizer,
    fresh_state,
    stage_step_array,
)
from prts_jax.train.stopping import Stopping

FREE_TO_CHANGE = (
    "mesh.",
    "logging.",
    "evaluation.",
    "checkpoint.",
    "train.steps",
    # Later stages may change; the current stage is compared key by key.
    "growth.stages",
    "compute.remat",
    "compute.loss_chunks",
    "compute.tpu_flags",
    "compute.attention",
    "compute.scan",
    # Stores may move; their content is compared by fingerprint.
    "data.train",
    "data.validation",
    # Read only at the start of a run.
    "init.grow_from",
    "init.start_from",
    "init.growth.matrices",
)
"""Prefixes of the keys that may change on resume without --allow_change."""

DATA_ORDER = ("length", "seed", "shuffle", "overlap", "mixture", "block", "pieces")
"""Keys of `config.data` that determine the tokens at a position."""


@dataclass(frozen=True)
class Start:
    """The state and lineage before the first step of a stage.

    Attributes:
      how: description of the source of parameters and data for the user.
      model: config of the trained model; for a grown model, the target of its growth map.
      declarations: path → declaration of the model's parameters.
      state: training state on the mesh.
      lineage: lineage of the state.
      resumed: whether the run continues from a checkpoint in its own workdir.
      growth_map: the map that has just grown the parameters; None without growth.
    """

    how: str
    model: ModelConfig
    declarations: Mapping[str, Declaration]
    state: TrainState
    lineage: Lineage
    resumed: bool = False
    growth_map: GrowthMap | None = None


def begin(
    config: RunConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    batches: TrainBatches,
    checkpoints: Checkpoints,
    allow_change: Collection[str] = (),
    stage: int = 0,
    stopping: Stopping = lambda: False,
) -> Start:
    """Returns the state and lineage from which the run trains on.

    The first case that applies is used:
      1. The newest checkpoint of the workdir, regardless of `config.init`, so that the command that
         started a run also resumes it. If that checkpoint is of the previous stage, this stage
         starts from it: grown if the models differ, otherwise as with `init.start_from`.
      2. `init.grow_from`: parameters grown on the mesh, with a fresh optimizer state or, if
         `init.growth.optimizer` is "copy", a grown one. The data continue at the next token.
      3. `init.start_from`: unchanged parameters; otherwise as 2.
      4. Fresh parameters from `init.seed`.

    Args:
      config: config of the stage.
      mesh: mesh for the state.
      optimizer: optimizer of the stage.
      batches: the training data; the store must have the fingerprint in the checkpoint's lineage.
      checkpoints: checkpoints of the workdir.
      allow_change: dotted config keys that may differ from the checkpoint's.
      stage: index of the stage in the run.
      stopping: tells after each step of learning a growth map whether to stop.

    Raises:
      UserError: the checkpoint does not match the config, or `allow_change` has an unknown key.
      DamagedError: the newest checkpoint is damaged, see `leave_damaged`.
      Interrupted: SIGTERM came while a growth map was learned.
    """
    _check_names(allow_change, config)
    newest = checkpoints.newest()
    if newest is not None:
        path = checkpoints.path(newest)
        with agreed():
            lineage = checkpoint_store.read_lineage(path)
        checkpoints.carry_tokenizer(path, lineage)
        config = restore_norm_epsilon(config, lineage)
        if lineage.stage < stage:
            learning = _learning(
                config, mesh, batches, ("data.store",), stopping, checkpoints.workdir
            )
            return _next_stage(config, mesh, optimizer, batches, path, lineage, stage, learning)
        return _resume(config, mesh, optimizer, batches, path, lineage, allow_change)
    if config.init.grow_from or config.init.start_from:
        path = checkpoint_store.resolve(config.init.grow_from or config.init.start_from)
        lineage = checkpoint_store.read_lineage(path)
        _check_tokenizer(config, batches, path, lineage, allow_change)
        checkpoints.carry_tokenizer(path, lineage)
        config = restore_norm_epsilon(config, lineage)
        if config.init.grow_from:
            learning = _learning(config, mesh, batches, allow_change, stopping, checkpoints.workdir)
            ancestor = grow_from(config, mesh, optimizer, path, lineage, learning, stage)
        else:
            ancestor = start_from(config, mesh, optimizer, path, lineage)
        return _after(ancestor, config, batches, allow_change)
    return _fresh(config, mesh, optimizer, batches)


def leave_damaged(workdir: str, damage: DamagedError) -> None:
    """Moves the damaged newest checkpoint of a run aside and says so; the run then begins again.

    The run repeats the steps since the checkpoint before, with the same results.

    Raises:
      DamagedError: the damaged checkpoint is not the run's, or no other is left.
    """
    with all_processes():
        if jax.process_index() == 0:
            directory = str(as_path(workdir) / CHECKPOINTS)
            TerminalLine(0, False).say(set_aside(directory, damage))


def name_foreign_entries(workdir: str) -> None:
    """Names the entries of a run's `checkpoints` directory that belong to somebody else."""
    directory = as_path(workdir) / CHECKPOINTS
    foreign = contents(str(directory)).foreign
    if foreign:
        text = f"{directory}: leaving alone what is no checkpoint: {', '.join(foreign)}"
        TerminalLine(0, jax.process_index() > 0).say(text)


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
    state = fresh_state(params, optimizer, mesh)
    return Start("fresh parameters", config.model, declarations, state, lineage)


def restore_norm_epsilon(config: RunConfig, lineage: Lineage) -> RunConfig:
    """Replaces a pre-growth norm epsilon in the config by the grown model's, from the lineage.

    Exact growth in width scales the epsilon. The config that grew a model, with the old epsilon,
    must also work for resuming it and starting from it.
    """
    if config.model.norm_eps not in epsilons_before_growth(lineage):
        return config
    model = dataclasses.replace(config.model, norm_eps=lineage.model.norm_eps)
    return dataclasses.replace(config, model=model)


def epsilons_before_growth(lineage: Lineage) -> set[float]:
    """Returns the norm epsilons of all models in a lineage that were grown into another model."""
    return {record.map.source.norm_eps for record in lineage.growth}


def _resume(
    config: RunConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    batches: TrainBatches,
    path: str,
    lineage: Lineage,
    allow_change: Collection[str],
) -> Start:
    """Resumes from a checkpoint of the same run and stage."""
    # Before the comparison of keys, because this error explains why the store differs.
    position, note, _ = data_position(lineage, config, batches, allow_change)
    changes = config_changes(lineage, config, batches.store.fingerprint, allow_change)
    # The config's model equals the checkpoint's or differs only by allowed changes.
    model = config.model
    declarations = declare(model)
    abstract = abstract_params(declarations, mesh)
    params = checkpoint_store.restore_params(path, abstract, declarations)
    state = TrainState(
        params,
        checkpoint_store.restore_optimizer(path, abstract_optimizer(optimizer, abstract, mesh)),
        stage_step_array(lineage.stage_step, mesh),
    )
    lineage = dataclasses.replace(
        lineage,
        config=to_dict(config),
        position=position,
        store=batches.store.fingerprint,
        changes=(*lineage.changes, *changes),
        teacher=find_teacher(config, lineage),
    )
    how = f"resumed from {path}; {note}"
    return Start(how, model, declarations, state, lineage, resumed=True)


def _next_stage(
    config: RunConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    batches: TrainBatches,
    path: str,
    lineage: Lineage,
    stage: int,
    learning: Learn,
) -> Start:
    """Starts the next stage, which may change its data without --allow_change."""
    if lineage.model == config.model:
        ancestor = start_from(config, mesh, optimizer, path, lineage)
    else:
        ancestor = grow_from(config, mesh, optimizer, path, lineage, learning, stage)
    start = _after(ancestor, config, batches, ("data.store",))
    lineage = dataclasses.replace(start.lineage, stage=stage)
    return dataclasses.replace(start, lineage=lineage, resumed=True)


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


def _after(
    ancestor: Ancestor,
    config: RunConfig,
    batches: TrainBatches,
    allow_change: Collection[str],
) -> Start:
    """Starts a new stage from an ancestor; its data continue at the next token."""
    before, model = ancestor.lineage, ancestor.lineage.model
    if fine_tuning.begins(before, config.data):
        before = fine_tuning.begin(before, ancestor.path, batches.store, allow_change)
        allow_change = (*allow_change, "data.store")
    position, note, changes = data_position(before, config, batches, allow_change)
    lineage = dataclasses.replace(
        before,
        config=_with_model(config, model),
        position=position,
        store=batches.store.fingerprint,
        changes=(*before.changes, *changes),
        stage=0,
        teacher=choose_teacher(config, ancestor.path if ancestor.growth_map else ""),
        special_ids=special_ids_of(ancestor.path, before),
    )
    how = f"{ancestor.how}; {note}"
    start = Start(how, model, declare(model), ancestor.state, lineage)
    return dataclasses.replace(start, growth_map=ancestor.growth_map)


def data_position(
    lineage: Lineage, config: RunConfig, batches: TrainBatches, allow_change: Collection[str]
) -> tuple[int, str, tuple[ChangeRecord, ...]]:
    """Returns the data position from which a run continues after a checkpoint.

    Reading continues at the next token if the order is the checkpoint's, or if only the length
    differs and the data are shuffled in blocks whose pieces are the same number of tokens at both
    lengths. Any other change of the order (length, seed, shuffle, mixture …) starts a new epoch.
    Another store needs `--allow_change=data.store` and is read from its start.

    Returns:
      (position in tokens, message for the user, changes for the lineage).

    Raises:
      UserError: another store without --allow_change=data.store.
    """
    fingerprint = batches.store.fingerprint
    if not lineage.store:
        return 0, "data start at the beginning", ()  # an imported model has no data position
    if lineage.store != fingerprint:
        if "data.store" not in allow_change:
            mixture = lineage.config["data"].get("mixture", "")
            # A mixture without some sets changes the fingerprint of the store.
            key = "train" if mixture == config.data.mixture else "mixture"
            raise UserError(
                f"config.data.{key}: {getattr(config.data, key)!r} is not what the checkpoint was "
                f"trained on (fingerprint {short_fingerprint(fingerprint)}, not "
                f"{short_fingerprint(lineage.store)}); set it back, or pass "
                "--allow_change=data.store to start from its beginning"
            )
        change = lineage.change_record("data.store", lineage.store, fingerprint)
        return 0, "data start at the beginning of another store", (change,)
    after = dataclasses.asdict(config.data)
    before = {**dataclasses.asdict(DataConfig()), **_data_config(lineage)}
    # A mixture without shares only selects sets, and the equal fingerprint covers that.
    entries = before["mixture"].split(SEPARATOR)
    mixture = SEPARATOR.join(entry if "=" in entry else "" for entry in entries)
    order = ReadOrder.of(before, mixture=mixture)
    same_pieces = order.piece == batches.order.piece
    changed = [
        key
        for key in DATA_ORDER
        if before[key] != after[key] and not (key == "pieces" and same_pieces)
    ]
    changes = tuple(
        lineage.change_record(f"data.{key}", before[key], after[key]) for key in changed
    )
    same_order = same_pieces and batches.keeps_position(lineage.position)
    if not changed or (changed == ["length"] and same_order):
        return lineage.position, f"data go on at token {lineage.position:,}", changes
    old = train_batches(batches.store, order)
    epochs = -(-lineage.position // (old.windows_per_epoch * old.order.length))
    note = f"data.{changed[0]} changed, so data start epoch {epochs + 1} in a new order"
    return epochs * batches.windows_per_epoch * batches.order.length, note, changes


def _data_config(lineage: Lineage) -> dict[str, Any]:
    """Returns `config.data` of a checkpoint; older versions read a block's windows in a row."""
    data = lineage.config["data"]
    return {"pieces": 1, **data} if data.get("block") else data


def config_changes(
    lineage: Lineage, config: RunConfig, fingerprint: str, allow_change: Collection[str]
) -> tuple[ChangeRecord, ...]:
    """Compares the config of a run with its checkpoint's.

    Returns:
      The allowed changes, for the lineage.

    Raises:
      UserError: a key or the store changed and is not in `allow_change`.
    """
    before = tree.flatten({**lineage.config, "data": _data_config(lineage)})
    after = tree.flatten(to_dict(config))
    pairs = {
        path.replace("/", "."): (before.get(path, value), value) for path, value in after.items()
    }
    pairs["data.store"] = (lineage.store, fingerprint)
    changes = []
    for key, (old, new) in pairs.items():
        if old == new or key.startswith(FREE_TO_CHANGE):
            continue
        if key not in allow_change:
            raise UserError(
                f"config.{key}: was {old!r} in the checkpoint at step {lineage.step} and is now "
                f"{new!r}; set it back, or pass --allow_change={key}"
            )
        changes.append(lineage.change_record(key, old, new))
    return tuple(changes)


def _check_names(allow_change: Collection[str], config: RunConfig) -> None:
    known = [path.replace("/", ".") for path in tree.flatten(to_dict(config))] + ["data.store"]
    for key in allow_change:
        if key not in known:
            same_end = [name for name in known if name.endswith(f".{key}")]
            close = same_end or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]!r}?" if close else "--print_config shows them all"
            raise UserError(f"--allow_change={key}: no such key; {hint}")


def _check_tokenizer(
    config: RunConfig,
    batches: TrainBatches,
    path: str,
    lineage: Lineage,
    allow_change: Collection[str],
) -> None:
    """Checks that a store on which a checkpoint may train has the checkpoint's tokenizer.

    `data_position` refuses all other stores, and the start of fine-tuning has a check of its own.
    """
    may_differ = not lineage.store or "data.store" in allow_change
    if may_differ and not fine_tuning.begins(lineage, config.data):
        check_store_tokenizer(path, lineage, batches.store)


def _with_model(config: RunConfig, model: ModelConfig) -> dict[str, Any]:
    return to_dict(dataclasses.replace(config, model=model))
