"""The programs of a run, lowered for devices that need not exist: no array is allocated."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from data_pipelines.batches.loader import DOCUMENT_FIELDS, FIELDS
from prts_jax.config import ModelConfig, RunConfig, to_dict
from prts_jax.evaluate.perplexity import evaluation_step
from prts_jax.growth import dense
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_mesh import growth_step
from prts_jax.growth.operators import make_map
from prts_jax.mesh import abstract_params, axis_size, replicated, sharding
from prts_jax.model.architecture import declare
from prts_jax.model.attention import on_tpu
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import TrainState, abstract_optimizer
from prts_jax.train.step import make_train_step
from prts_jax.tree import flatten

SOURCES = 7
"""Sets of SlimPajama, whose losses a step sums separately."""


def abstract_state(config: RunConfig, mesh: Mesh | AbstractMesh) -> TrainState:
    """Returns shapes and shardings of the training state of a config."""
    params = abstract_params(declare(config.model), mesh)
    optimizer = abstract_optimizer(make_optimizer(config), params, mesh)
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    return TrainState(params, optimizer, step, params if config.optimizer.ema else None)


def abstract_batch(
    config: RunConfig, mesh: Mesh | AbstractMesh, rows: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns shapes and shardings of a batch: arrays [rows, length] by name."""
    names = FIELDS + DOCUMENT_FIELDS * config.data.documents
    by_rows = sharding(mesh, ("batch", "length"))
    return {
        name: jax.ShapeDtypeStruct(
            (rows, config.data.length),
            jnp.float32 if name == "loss_weights" else jnp.int32,
            sharding=by_rows,
        )
        for name in names
    }


def for_tpu(config: RunConfig, mesh: Mesh | AbstractMesh) -> RunConfig:
    """Returns the config with the attention that "auto" chooses on a TPU."""
    if config.compute.attention != "auto":
        return config
    length = config.data.length // axis_size(mesh, "length")
    compute = dataclasses.replace(config.compute, attention=on_tpu(length, config.compute.dtype))
    return dataclasses.replace(config, compute=compute)


def lower_train_step(config: RunConfig, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers the train step of a config; its mesh must hold, see `use_mesh`.

    Raises:
      UserError: the mesh does not divide the model.
    """
    config = for_tpu(config, mesh)
    step = make_train_step(config, make_optimizer(config), sources=SOURCES)
    batch = abstract_batch(config, mesh, config.data.batch)
    return step.lower(abstract_state(config, mesh), batch, None)


def lower_evaluation_step(config: RunConfig, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers the step of a validation; raises as `lower_train_step` does."""
    compute = for_tpu(config, mesh).compute
    step = evaluation_step(config.model, compute, SOURCES, mesh)
    rows = config.evaluation.batch or config.data.batch
    params = abstract_params(declare(config.model), mesh)
    return step.lower(params, abstract_batch(config, mesh, rows), None)


def lower_growth_step(config: RunConfig, source: ModelConfig, mesh: Mesh) -> jax.stages.Lowered:
    """Lowers the growth of parameters on the mesh: source and target are there together.

    Raises:
      UserError: the growth is impossible, or the mesh does not divide a model.
    """
    growth_map: GrowthMap = make_map(source, config.model, **to_dict(config.init.growth))
    declarations = declare(growth_map.target)
    target = flatten(abstract_params(declarations, mesh))
    shardings = {path: leaf.sharding for path, leaf in target.items()}
    step = growth_step(growth_map, declarations, shardings)
    leaves = flatten(abstract_params(declare(source), mesh))
    matrices: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((s.rows, s.columns), jnp.float32, sharding=replicated(mesh))
        for name, s in dense.matrix_shapes(growth_map, declarations).items()
    }
    return step.lower(leaves, matrices)
