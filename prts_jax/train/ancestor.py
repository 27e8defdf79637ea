"""The state of a stage that starts from another checkpoint, grown or unchanged."""

import dataclasses

import jax
import optax
from jax.sharding import Mesh

from prts_jax.checkpoint import restore
from prts_jax.config import RunConfig
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.optimizer import grow_optimizer
from prts_jax.mesh import abstract_params, abstract_params_on_any_mesh, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.train import moving_average
from prts_jax.train.learn import Learn
from prts_jax.train.origin import Origin, Start
from prts_jax.train.state import (
    TrainState,
    abstract_optimizer,
    fresh_state,
    stage_step_array,
)


def grow_from(
    config: RunConfig,
    growth_map: GrowthMap,
    origin: Origin,
    mesh: Mesh,
    optimizer: optax.GradientTransformation,
    learn: Learn,
) -> Start:
    """Grows a checkpoint on the mesh.

    Args:
      config: config of the new stage; `init.growth.optimizer` says what to do with the optimizer
        state.
      growth_map: map from the checkpoint's model to the stage's.
      origin: the checkpoint.
      mesh: mesh for the new state.
      optimizer: optimizer of the stage.
      learn: learns the matrices of the map, if it has any.

    The moving average of the weights grows by the map of the weights.

    Returns:
      The start; its lineage is that right after growth.

    Raises:
      UserError: the checkpoint has no optimizer state to copy.
      DamagedError: see `restore_params`.
    """
    path, source = origin.path, origin.lineage
    old, new = declare(source.model), declare(growth_map.target)
    shardings = param_shardings(mesh, new)  # fail before learning starts
    abstract = abstract_params_on_any_mesh(old, mesh)
    source_params = restore.restore_params(path, abstract, old, lineage=source)
    growth_map, lineage, learning = learn(growth_map, source_params, source)
    params = grow_params(source_params, growth_map, new, shardings)
    ema = moving_average.restored(config, path, source, abstract, old)
    if ema is not None:
        ema = grow_params(ema, growth_map, new, shardings)
    policy = config.init.growth.optimizer
    if policy == "reset":
        state = fresh_state(params, optimizer, mesh)
    else:
        old_target, new_target = (
            abstract_optimizer(optimizer, of, mesh) for of in (abstract, params)
        )
        moments = restore.restore_optimizer(path, old_target, source)
        of_moments = jax.tree.map(lambda leaf: leaf.sharding, new_target)
        grown = grow_optimizer(moments, growth_map, new, optimizer.init, params, of_moments, policy)
        state = TrainState(params, grown, stage_step_array(0, mesh))
    state = state._replace(ema=ema or moving_average.begun(config, params))
    # Digests are computed on saving.
    lineage = lineage.grown(growth_map, {}, learning, optimizer=policy)
    return Start(f"grown from {path}", state, lineage, origin.own, growth_map)


def start_from(
    config: RunConfig, origin: Origin, mesh: Mesh, optimizer: optax.GradientTransformation
) -> Start:
    """Starts from the unchanged parameters of a checkpoint of the config's model.

    The optimizer state is fresh, if `init.growth.optimizer` is "reset" and `prts grow` did not
    write the checkpoint with an optimizer state. Otherwise the checkpoint's own is restored.

    Args:
      config: config of the new stage.
      origin: the checkpoint.
      mesh: mesh for the new state.
      optimizer: optimizer of the stage.

    Returns:
      The start; its lineage is the checkpoint's with `stage_step` 0.

    Raises:
      UserError: the checkpoint has no optimizer state to copy.
      DamagedError: see `restore_params`.
    """
    path, lineage = origin.path, origin.lineage
    declarations = declare(config.model)
    abstract = abstract_params(declarations, mesh)
    params = restore.restore_params(path, abstract, declarations, lineage=lineage)
    how = f"started from {path}"
    # Right after growth, a checkpoint has an optimizer state only if the user asked for it.
    just_grown = lineage.stage_step == 0 and restore.has_optimizer(path, lineage)
    if config.init.growth.optimizer != "reset" or just_grown:
        target = abstract_optimizer(optimizer, abstract, mesh)
        restored = restore.restore_optimizer(path, target, lineage)
        state = TrainState(params, restored, stage_step_array(0, mesh))
        how = f"{how} with its optimizer state"
    else:
        state = fresh_state(params, optimizer, mesh)
    ema = moving_average.restored(config, path, lineage, abstract, declarations)
    state = state._replace(ema=ema or moving_average.begun(config, params))
    return Start(how, state, dataclasses.replace(lineage, stage_step=0), origin.own)
