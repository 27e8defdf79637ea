"""Learned growth, G_learn: what learning starts from."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from prts_jax.config import ModelConfig
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.growth import dense, depth
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Arrays, Matrices
from prts_jax.growth.operator import FACTOR, WIDTHS, operator
from prts_jax.growth.wide_target import wide_target
from prts_jax.growth.widening import partition

WIDENS = ("embed", "mlp", "heads", "kv_heads")


@operator(
    "learned",
    factor=FACTOR,
    widths=WIDTHS,
    learn_steps="steps in which `prts train` learns the matrices; `prts grow` takes 0, their "
    "initial value, unless matrices are given",
    learn_rate="learning rate of these steps",
    matrices="file of matrices that a run has learned, CKPT/matrices/….npz in its checkpoints",
)
def learned(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> GrowthMap:
    """G_learn: `W_i' = Σ_j D_ij (B_a W_j B_bᵀ)` with trained D and B (eqs 37-42, LiGO).

    The map at its initial value (`prts_jax.growth.dense.initial`): in depth it is G_stack, tensor
    for tensor. A run that grows by it trains the matrices first (`prts_jax.train.learn`), which
    reads the other options. Not function preserving. Options factor and widths: as `width.split`.

    Raises:
      UserError: as `depth.stack` and `width.split`, or another number of queries a group.
    """
    if target is None and not options.get("widths"):
        target = depth.stack(source, None, options).target
    wide = wide_target(source, target, options)
    if wide.head_dim != source.head_dim:
        raise UserError(
            f"growth.widths: head_dim from {source.head_dim} to {wide.head_dim}: it fixes rotary "
            "frequencies, which no matrix restores; grow heads and kv_heads instead"
        )
    if wide.heads * source.kv_heads != source.heads * wide.kv_heads:
        raise UserError(
            f"growth.widths: from {source.heads // source.kv_heads} to "
            f"{wide.heads // wide.kv_heads} query heads a key head; learned growth ties queries to "
            "values: grow heads and kv_heads by the same factor"
        )
    same_width = dataclasses.replace(wide, layers=source.layers)
    stacked = depth.stack(same_width, wide, {"factor": options.get("factor", 0)})
    widths = {
        axis: partition([position % size for position in range(getattr(wide, axis))], uneven=True)
        for axis in WIDENS
        if getattr(wide, axis) != (size := getattr(source, axis))
    }
    growth_map = GrowthMap(
        "learned", dict(options), source, wide, stacked.layers, widths=widths, matrices=Matrices()
    )
    growth_map.validate()
    return growth_map


def with_arrays(
    growth_map: GrowthMap,
    declarations: Mapping[str, Declaration],
    arrays: Arrays,
    learning: Mapping[str, Any] | None = None,
) -> GrowthMap:
    """Returns the map with learned matrices; its `layers` are the strongest source layers.

    `arrays` are by name (`prts_jax.growth.dense.matrix_shapes`); for `learning` see `Matrices`.

    Raises:
      UserError: they are of other models.
    """
    dense.check_shapes(growth_map, declarations, arrays)
    strengths = sum(np.abs(array) for name, array in arrays.items() if name.startswith("depth/"))
    return dataclasses.replace(
        growth_map,
        layers=tuple(int(layer) for layer in np.argmax(strengths, axis=1)),
        matrices=Matrices.of(arrays, learning),
    )
