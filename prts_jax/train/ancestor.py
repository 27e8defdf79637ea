"""The initial state of a stage that starts from another checkpoint, grown or unchanged."""

import dataclasses
from typing import NamedTuple

import jax
import optax
from jax.sharding import Mesh

from prts_jax.checkpoint import store as checkpoint_store
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import (
    ModelConfig,
    RunConfig,
    inherited_growth_keys,
    model_differences,
    to_dict,
)
from prts_jax.errors import UserError
from prts_jax.growth.gates import refuse_shut
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.operators import make_map
from prts_jax.growth.optimizer import check_copies, grow_optimizer
from prts_jax.mesh import abstract_params, abstract_params_on_any_mesh, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.train.learn import Learn
from prts_jax.train.state import (
    TrainState,
    abstract_optimizer,
    fresh_state,
    stage_step_array,
)


class Ancestor(NamedTuple):
    """The initial state of a stage that starts from another checkpoint.

    Attributes:
      state: training state on the mesh.
      lineage: lineage right after growth, or the checkpoint's with `stage_step` reset to 0.
      how: description of the start for the user.
      path: path of the checkpoint.
      growth_map: the map that grew the parameters; None without growth.
    """

    state: TrainState
    lineage: Lineage
    how: str
    path: str
    growth_map: GrowthMap | None = None


def grow_from(
    config: RunConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    path: str,
    source: Lineage,
    learn: Learn,
    stage: int = 0,
) -> Ancestor:
    """Grows a checkpoint into the config's model on the mesh.

    Args:
      config: config of the new stage; `init.growth` holds the operator and what to do with the
        optimizer state.
      mesh: mesh for the new state.
      optimizer: optimizer of the stage.
      path: path of the checkpoint, as returned by `resolve`.
      source: lineage of the checkpoint.
      learn: learns the matrices of the map, if it has any.
      stage: index of the stage in its run.

    Raises:
      UserError: the growth is impossible, gates of the checkpoint are not open yet, or the
        checkpoint has no optimizer state to copy.
    """
    refuse_shut(source, path)
    inherited = inherited_growth_keys(config, stage)
    growth_map = make_map(
        source.model, config.model, inherited=inherited, **to_dict(config.init.growth)
    )
    if config.init.growth.optimizer == "copy":
        check_copies(growth_map)  # fail before learning starts
    old, new = declare(source.model), declare(growth_map.target)
    shardings = param_shardings(mesh, new)  # fail before learning starts
    abstract = abstract_params_on_any_mesh(old, mesh)
    source_params = checkpoint_store.restore_params(path, abstract, old)
    growth_map, source, learning = learn(growth_map, source_params, source)
    params = grow_params(source_params, growth_map, new, shardings)
    if config.init.growth.optimizer == "copy":
        moments = checkpoint_store.restore_optimizer(
            path, abstract_optimizer(optimizer, abstract, mesh)
        )
        target = abstract_optimizer(optimizer, params, mesh)
        of_moments = jax.tree.map(lambda leaf: leaf.sharding, target)
        grown = grow_optimizer(moments, growth_map, new, optimizer.init, params, of_moments)
        state = TrainState(params, grown, stage_step_array(0, mesh))
    else:
        state = fresh_state(params, optimizer, mesh)
    lineage = source.grown(growth_map, {}, learning)  # digests are computed on saving
    return Ancestor(state, lineage, f"grown from {path}", path, growth_map)


def start_from(
    config: RunConfig,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    path: str,
    lineage: Lineage,
) -> Ancestor:
    """Starts from the unchanged parameters of a checkpoint of the config's model.

    The optimizer state is fresh, unless `init.growth.optimizer` is "copy" or `prts grow` wrote the
    checkpoint with an optimizer state: then the checkpoint's own is restored.

    Args:
      config: config of the new stage.
      mesh: mesh for the new state.
      optimizer: optimizer of the stage.
      path: path of the checkpoint, as returned by `resolve`.
      lineage: lineage of the checkpoint.

    Raises:
      UserError: the checkpoint holds another model (the message names the key) or has no optimizer
        state to copy.
    """
    _same_model(lineage.model, config.model, path)
    declarations = declare(lineage.model)
    abstract = abstract_params(declarations, mesh)
    params = checkpoint_store.restore_params(path, abstract, declarations)
    how = f"started from {path}"
    # Right after growth, a checkpoint has an optimizer state only if the user asked for it.
    just_grown = lineage.stage_step == 0 and checkpoint_store.has_optimizer(path)
    if config.init.growth.optimizer == "copy" or just_grown:
        target = abstract_optimizer(optimizer, abstract, mesh)
        restored = checkpoint_store.restore_optimizer(path, target)
        state = TrainState(params, restored, stage_step_array(0, mesh))
        how = f"{how} with its optimizer state"
    else:
        state = fresh_state(params, optimizer, mesh)
    return Ancestor(state, dataclasses.replace(lineage, stage_step=0), how, path)


def _same_model(checkpoint: ModelConfig, config: ModelConfig, path: str) -> None:
    for name, ours, theirs in model_differences(config, checkpoint):
        raise UserError(
            f"config.model.{name}: is {ours}, but {path} has {theirs}; use the checkpoint's, or "
            "init.grow_from to grow it"
        )
