"""Loss, logits and gradients of one model on one device and on meshes of eight.

Run by test_sharded_model.py with eight virtual devices. Prints one JSON object: mesh → the largest
differences from one device, relative to the largest value, and which leaves are really split.
"""

import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax import tree
from prts_jax.config import ComputeConfig, MeshConfig, ModelConfig
from prts_jax.mesh import make_mesh, param_shardings, sharding
from prts_jax.model import architecture
from prts_jax.model.initialise import init_params

MODEL = ModelConfig(vocab=64, layers=3, embed=48, heads=4, kv_heads=2, head_dim=8, mlp=96)
COMPUTE = ComputeConfig(dtype="float32", attention="xla")
MESHES = {
    "fsdp=8": MeshConfig(fsdp=8),
    "fsdp=4 tensor=2": MeshConfig(fsdp=4, tensor=2),
    "data=2 fsdp=2 tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
}

Results = tuple[jax.Array, jax.Array, dict[str, jax.Array]]


def evaluate(params: Mapping[str, Any], tokens_BxS: jax.Array) -> Results:
    def loss(params: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        logits = architecture.logits(params, tokens_BxS, MODEL, COMPUTE)
        log_probs = jax.nn.log_softmax(logits)[:, :-1]
        return -jnp.take_along_axis(log_probs, tokens_BxS[:, 1:, None], axis=-1).mean(), logits

    (value, logits), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return value, logits, tree.flatten(grads)


def relative_error(ours: jax.Array, reference: jax.Array) -> float:
    difference = np.abs(np.asarray(ours) - np.asarray(reference)).max()
    return float(difference / np.abs(np.asarray(reference)).max())


def main() -> None:
    declarations = architecture.declare(MODEL)
    params = init_params(declarations, MODEL.layers, "paper", seed=3)
    tokens_BxS = jax.random.randint(jax.random.key(0), (8, 16), 0, MODEL.vocab, jnp.int32)
    loss, logits, grads = jax.jit(evaluate)(params, tokens_BxS)
    report = {}
    for name, config in MESHES.items():
        mesh = make_mesh(config)
        shardings = param_shardings(mesh, declarations)
        with jax.set_mesh(mesh):
            sharded = init_params(declarations, MODEL.layers, "paper", 3, shardings)
            split_tokens = jax.device_put(tokens_BxS, sharding(mesh, ("batch", "length")))
            sharded_loss, sharded_logits, sharded_grads = jax.jit(evaluate)(sharded, split_tokens)
        leaves = tree.flatten(sharded)
        report[name] = {
            "loss": relative_error(sharded_loss, loss),
            "logits": relative_error(sharded_logits, logits),
            "grads": max(relative_error(sharded_grads[path], grads[path]) for path in grads),
            "initial values differ in": [
                path
                for path, leaf in tree.flatten(params).items()
                if not np.array_equal(leaf, leaves[path])
            ],
            "parts of leaves": {
                path: leaf.size // leaf.addressable_shards[0].data.size
                for path, leaf in leaves.items()
            },
            "parts of logits": sharded_logits.size
            // sharded_logits.addressable_shards[0].data.size,
        }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
