"""Loss, logits and gradients of one model on one device and on meshes of eight.

Run by test_sharded_model.py with eight virtual devices. Prints one JSON object: mesh → the largest
differences from one device, relative to the largest value, and which leaves are really split.
"""

import functools
import json
import sys
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from prts_jax import tree
from prts_jax.config import ComputeConfig, MeshConfig, ModelConfig
from prts_jax.mesh import param_shardings, sharding, use_mesh
from prts_jax.model import architecture
from prts_jax.model.attention import causal_attention
from prts_jax.model.initialise import init_params

MODEL = ModelConfig(vocab=64, layers=3, embed=48, heads=4, kv_heads=2, head_dim=8, mlp=96)
COMPUTE = ComputeConfig(dtype="float32", attention="xla")
MESHES = {
    "fsdp=8": MeshConfig(fsdp=8),
    "fsdp=4 tensor=2": MeshConfig(fsdp=4, tensor=2),
    "data=2 fsdp=2 tensor=2": MeshConfig(data=2, fsdp=2, tensor=2),
    "fsdp=2 sequence=2 tensor=2": MeshConfig(fsdp=2, sequence=2, tensor=2),
    "changed rules": MeshConfig(fsdp=2, sequence=4, rules="vocab=fsdp+sequence,embed=none"),
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


def attention_and_gradients(
    implementation: str, qkv: tuple[jax.Array, ...], segment_ids_BxS: jax.Array | None
) -> tuple[jax.Array, ...]:
    def loss(*qkv: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = causal_attention(*qkv, implementation, jax.lax.Precision.HIGHEST, segment_ids_BxS)
        return jnp.square(out).sum(), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*qkv)
    return out, *grads


def splash_errors() -> dict[str, float]:
    """Compares the interpreted kernels on a mesh that splits positions with XLA on one device."""
    kernel = splash_attention_kernel
    kernel.make_splash_mqa = functools.partial(kernel.make_splash_mqa, interpret=True)
    keys = jax.random.split(jax.random.key(1), 3)
    qkv = tuple(jax.random.normal(keys[i], (1, n, 256, 64)) for i, n in enumerate((4, 2, 2)))
    documents = jnp.arange(256, dtype=jnp.int32)[None] // 100
    errors = {}
    for name, segment_ids_BxS in (("one document", None), ("documents", documents)):
        expected = attention_and_gradients("xla", qkv, segment_ids_BxS)
        with use_mesh(MeshConfig(sequence=2, tensor=2), jax.devices()[:4]):
            ours = attention_and_gradients("splash", qkv, segment_ids_BxS)
        errors[name] = max(map(relative_error, ours, expected))
    return errors


def main() -> None:
    declarations = architecture.declare(MODEL)
    params = init_params(declarations, MODEL.layers, "paper", seed=3)
    tokens_BxS = jax.random.randint(jax.random.key(0), (8, 16), 0, MODEL.vocab, jnp.int32)
    loss, logits, grads = jax.jit(evaluate)(params, tokens_BxS)
    report = {}
    for name, config in MESHES.items():
        with use_mesh(config) as mesh:
            shardings = param_shardings(mesh, declarations)
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
    report["splash"] = splash_errors()
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
