"""Compiles the programs of a config for a topology and searches settings that fit."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from prts_jax.aot import programs
from prts_jax.aot.estimate import Estimate, estimate
from prts_jax.aot.topology import Topology
from prts_jax.compilation import compiler_options
from prts_jax.config import MeshConfig, ModelConfig, RunConfig
from prts_jax.errors import UserError
from prts_jax.mesh import axis_size, check_length, mesh_sizes, use_mesh
from prts_jax.model.architecture import declare
from prts_jax.model.counts import training_flops_per_token

REMATS = ("none", "minimal", "save_qkv", "full")
"""Policies of the search, from most memory to least."""


def compile_train_step(config: RunConfig, topology: Topology) -> Estimate:
    """Compiles the train step of a config.

    Raises:
      UserError: the mesh does not fit the slices or the model, or a compiler flag is unknown.
    """
    with use_mesh(config.mesh, topology.devices) as mesh:
        check_batch(config, axis_size(mesh, "batch"))
        check_length(mesh, config.data.length, config.compute.loss_chunks)
        state = programs.abstract_state(config, mesh)
        arguments = {
            "parameters": state.params,
            "optimizer": state.optimizer,
            **({"average": state.ema} if state.ema is not None else {}),
            "batch": programs.abstract_batch(config, mesh, config.data.batch),
        }
        lowered = programs.lower_train_step(config, mesh)
        return _estimate(lowered, topology, mesh, arguments, config)


def compile_evaluation_step(config: RunConfig, topology: Topology) -> Estimate:
    """Compiles the step of a validation; raises as `compile_train_step` does."""
    with use_mesh(config.mesh, topology.devices) as mesh:
        arguments = {
            "parameters": programs.abstract_state(config, mesh).params,
            "batch": programs.abstract_batch(
                config, mesh, config.evaluation.batch or config.data.batch
            ),
        }
        lowered = programs.lower_evaluation_step(config, mesh)
        return _estimate(lowered, topology, mesh, arguments, config)


def compile_growth_step(config: RunConfig, source: ModelConfig, topology: Topology) -> Estimate:
    """Compiles the growth from a source model; raises as `compile_train_step` does."""
    with use_mesh(config.mesh, topology.devices) as mesh:
        source_state = programs.abstract_state(dataclasses.replace(config, model=source), mesh)
        lowered = programs.lower_growth_step(config, source, mesh)
        return _estimate(lowered, topology, mesh, {"parameters": source_state.params}, config)


def _estimate(
    lowered: jax.stages.Lowered,
    topology: Topology,
    mesh: jax.sharding.Mesh,
    arguments: Mapping[str, Any],
    config: RunConfig,
) -> Estimate:
    options = compiler_options(config.compute.tpu_flags, "tpu")
    return estimate(lowered, topology, mesh.shape, arguments, options)


def check_batch(config: RunConfig, batch_parts: int) -> None:
    """Raises UserError if the batch does not divide among data-parallel devices."""
    micro_rows = batch_parts * config.train.accumulation
    if config.data.batch % micro_rows:
        raise UserError(
            f"config.data.batch: {config.data.batch} does not divide among {batch_parts} "
            f"data-parallel devices × train.accumulation={config.train.accumulation}; make it a "
            f"multiple of {micro_rows}"
        )


def mfu_bound(config: RunConfig, result: Estimate, topology: Topology) -> float | None:
    """Returns the MFU if kernels and exposed communication took no time; None if unknown.

    FLOPs are those of `prts_jax.model.counts`: recomputation does not count.
    """
    if not result.estimated_seconds:
        return None
    flops = training_flops_per_token(config.model, declare(config.model), config.data.length)
    peak = topology.generation.peak_flops * topology.chips
    tokens = config.data.batch * config.data.length
    return flops * tokens / (result.estimated_seconds * peak)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """Settings that the search tries.

    Attributes:
      rows: sequences per device and micro-batch.
      remat: policy of rematerialisation.
      mesh: sizes of the axes.
    """

    rows: int
    remat: str
    mesh: MeshConfig

    def apply(self, config: RunConfig, batch_parts: int) -> RunConfig:
        """Returns the config with these settings; its batch is one micro-batch."""
        return dataclasses.replace(
            config,
            mesh=self.mesh,
            data=dataclasses.replace(config.data, batch=self.rows * batch_parts),
            compute=dataclasses.replace(config.compute, remat=self.remat),
            train=dataclasses.replace(config.train, accumulation=1),
        )


def candidates(
    config: RunConfig, rows: Sequence[int], remats: Sequence[str], tensors: Sequence[int]
) -> list[Candidate]:
    """Returns all combinations, for each mesh and policy with rising rows."""
    return [
        Candidate(row, remat, dataclasses.replace(config.mesh, tensor=tensor, fsdp=-1))
        for tensor, remat, row in itertools.product(tensors, remats, sorted(rows))
    ]


def search(
    config: RunConfig, topology: Topology, tried: Sequence[Candidate], say: Callable[[str], None]
) -> Iterator[tuple[Candidate, RunConfig, Estimate]]:
    """Compiles the train step of each candidate, except those that need more than one that fails.

    Args:
      config: the settings that the search does not change.
      topology: the slices.
      tried: from `candidates`; a later one of the same mesh and policy has more rows.
      say: takes a line of progress.

    Yields:
      (candidate, its config, the compiler's statement).
    """
    too_large: set[tuple[str, MeshConfig]] = set()
    for number, candidate in enumerate(tried, 1):
        sizes = " ".join(f"{axis}={n}" for axis, n in mesh_sizes(candidate.mesh).items())
        name = f"{candidate.rows} × {config.data.length}, {candidate.remat}, {sizes}"
        if (candidate.remat, candidate.mesh) in too_large:
            say(f"{number}/{len(tried)} {name}: left out, fewer rows did not fit")
            continue
        try:
            with use_mesh(candidate.mesh, topology.devices) as mesh:
                parts = axis_size(mesh, "batch")
            changed = candidate.apply(config, parts)
            result = compile_train_step(changed, topology)
        except UserError as error:
            say(f"{number}/{len(tried)} {name}: {error}")
            continue
        if not result.fits:
            too_large.add((candidate.remat, candidate.mesh))
        say(f"{number}/{len(tried)} {name}: {'fits' if result.fits else 'does not fit'}")
        yield candidate, changed, result
