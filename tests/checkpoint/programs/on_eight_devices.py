"""Checkpoints and growth on meshes of eight devices; prints one JSON object."""

import json
import re
import sys
from typing import Any

import jax
import numpy as np

from prts_jax.checkpoint import arrays
from prts_jax.checkpoint.digests import digests
from prts_jax.checkpoint.restore import restore_params
from prts_jax.checkpoint.store import save_checkpoint
from prts_jax.config import MeshConfig, ModelConfig
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.operators import make_map
from prts_jax.mesh import make_mesh, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.tree import flatten, unflatten
from tests.checkpoint.tiny import abstract, lineage_of, random_params
from tests.growth.on_disk import growing

MODEL = ModelConfig(vocab=48, layers=3, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24)
DECLARED = declare(MODEL)
FOLDER = sys.argv[1]


def shardings(mesh: MeshConfig | None, declarations: Any = DECLARED) -> dict[str, Any]:
    if mesh is None:
        single = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return dict.fromkeys(declarations, single)
    return dict(param_shardings(make_mesh(mesh), declarations))


MESHES = {
    "fsdp=8": shardings(MeshConfig(fsdp=8)),
    "fsdp=4 tensor=2": shardings(MeshConfig(fsdp=4, tensor=2)),
    "one device": shardings(None),
}
VALUES = flatten(random_params())


def params_on(mesh: str) -> dict[str, Any]:
    return unflatten({path: jax.device_put(VALUES[path], MESHES[mesh][path]) for path in VALUES})


def same(params: Any, expected: dict[str, Any]) -> bool:
    return all(
        np.array_equal(np.asarray(leaf), np.asarray(expected[path]))
        for path, leaf in flatten(params).items()
    )


def folder(mesh: str) -> str:
    return f"{FOLDER}/{mesh.replace(' ', '_')}"


for name in MESHES:
    save_checkpoint(folder(name), params_on(name), lineage_of(params_on(name), MODEL, DECLARED))

restored = {}
for source, target in [
    ("fsdp=8", "fsdp=4 tensor=2"),
    ("fsdp=8", "one device"),
    ("fsdp=4 tensor=2", "fsdp=8"),
    ("one device", "fsdp=8"),
]:
    params = restore_params(folder(source), abstract(params_on(target)), DECLARED)
    kept = all(leaf.sharding == MESHES[target][path] for path, leaf in flatten(params).items())
    restored[f"{source} → {target}"] = kept and same(params, VALUES)

growth_map = make_map(MODEL, None, "layers", 0, "0:3,1:3,0:1")
targets = declare(growth_map.target)
target_shardings = shardings(MeshConfig(fsdp=4, tensor=2), targets)
source_params = params_on("fsdp=4 tensor=2")
grown = grow_params(source_params, growth_map, targets, target_shardings)
expected = {
    path: np.asarray(leaf)[list(growth_map.layers)] if DECLARED[path].stacked else leaf
    for path, leaf in VALUES.items()
}
program = (
    jax.jit(
        lambda tree: grow_params(tree, growth_map, targets, target_shardings),
        out_shardings=unflatten(target_shardings),
    )
    .lower(source_params)
    .compile()
    .as_text()
)
collectives = r"all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"

growing.stream(folder("fsdp=8"), f"{FOLDER}/grown", growth_map)
one = unflatten({path: jax.device_put(expected[path], jax.devices()[0]) for path in expected})
streamed = restore_params(f"{FOLDER}/grown", abstract(one), targets)
linked = []
for number, name in enumerate(MESHES):
    growing.link(folder(name), f"{FOLDER}/linked_{number}", growth_map)
    linked.append(restore_params(f"{FOLDER}/linked_{number}", abstract(grown), targets))

of_meshes = [digests(params_on(name), DECLARED) for name in MESHES]
chunks = arrays.describe(folder("fsdp=8"))
print(
    json.dumps(
        {
            "restored exactly": restored,
            "digests agree": all(one == of_meshes[0] for one in of_meshes),
            "layers per chunk": max(chunks[p].chunk[0] for p in chunks if DECLARED[p].stacked),
            "grown exactly": same(grown, expected)
            and all(leaf.sharding == target_shardings[p] for p, leaf in flatten(grown).items()),
            "collectives in growth": re.findall(collectives, program),
            "streamed exactly": same(streamed, expected),
            "linked exactly": [same(params, expected) for params in linked],
        }
    )
)
