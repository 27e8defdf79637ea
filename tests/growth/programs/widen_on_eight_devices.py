"""Grows in width on eight devices and on one; prints how far they differ, one JSON object."""

import json

import jax
import numpy as np

from prts_jax.config import MeshConfig, ModelConfig
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.operators import make_map
from prts_jax.mesh import make_mesh, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.tree import flatten, unflatten

SOURCE = ModelConfig(vocab=48, layers=2, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24)
TARGET = "embed=32,mlp=48,heads=8,kv_heads=4"
CASES = {
    "split": {"widths": TARGET, "weights": "uneven", "factor": 2},
    "zero_width": {"widths": f"{TARGET},head_dim=8"},
}
MESH = MeshConfig(fsdp=4, tensor=2)


def values():
    random = np.random.default_rng(0)
    return {
        path: random.normal(size=leaf.shape).astype(leaf.dtype)
        for path, leaf in declare(SOURCE).items()
    }


def grown(growth_map: GrowthMap, mesh: jax.sharding.Mesh | None):
    old, new = declare(growth_map.source), declare(growth_map.target)
    if mesh is None:
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        before, after = dict.fromkeys(old, here), dict.fromkeys(new, here)
    else:
        before, after = param_shardings(mesh, old), param_shardings(mesh, new)
    source = {path: jax.device_put(leaf, before[path]) for path, leaf in values().items()}
    built = flatten(grow_params(unflatten(source), growth_map, new, unflatten(after)))
    for path, leaf in built.items():
        assert leaf.sharding.is_equivalent_to(after[path], leaf.ndim), path
    return {path: np.asarray(leaf) for path, leaf in built.items()}


differences = {}
for operator, options in CASES.items():
    growth_map = make_map(SOURCE, None, operator, **options)
    alone, sharded = grown(growth_map, None), grown(growth_map, make_mesh(MESH))
    differences[operator] = max(
        float(np.abs(sharded[path] - leaf).max() / np.abs(leaf).max())
        for path, leaf in alone.items()
    )
print(json.dumps(differences))
