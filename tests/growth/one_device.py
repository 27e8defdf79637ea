"""Models and their growth on the first device, for tests that compare the two."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.config import ModelConfig
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_mesh import grow_params
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import init_params
from prts_jax.tree import flatten, unflatten


@functools.cache
def params_of(model: ModelConfig) -> dict[str, Any]:
    """Fresh parameters whose norms are not all ones."""
    leaves = flatten(init_params(declare(model), model.layers, "paper", 0))
    rng = np.random.default_rng(0)
    for path, leaf in leaves.items():
        if path.endswith("norm"):
            leaves[path] = jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), jnp.float32)
    return unflatten(leaves)


def grow(params: Any, growth_map: GrowthMap) -> dict[str, Any]:
    """The grown parameters, nested."""
    declarations = declare(growth_map.target)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = unflatten(dict.fromkeys(declarations, here))
    return grow_params(params, growth_map, declarations, shardings)
