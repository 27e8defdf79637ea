"""Compiles attention and a whole model's gradient for a TPU v5e that need not be there.

Run by test_compiled_for_tpu.py. Prints one JSON object: program → number of Pallas kernels, and
the kinds of collectives in it.
"""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from prts_jax import tree
from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.config.rules import MESH_AXES
from prts_jax.mesh import param_shardings, sharding
from prts_jax.model import architecture
from prts_jax.model.attention import causal_attention

COLLECTIVES = r" (all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute)(?:-start)?\("

MODEL = ModelConfig(vocab=512, layers=2, embed=256, heads=4, kv_heads=2, head_dim=64, mlp=512)


def kernels_and_collectives(compiled: jax.stages.Compiled) -> dict[str, object]:
    text = compiled.as_text() or ""
    return {
        "kernels": text.count('custom_call_target="tpu_custom_call"'),
        "collectives": sorted(set(re.findall(COLLECTIVES, text))),
    }


def attention_gradient(
    mesh: Mesh, head_dim: int, length: int, kv_heads: int, segmented: bool = False
) -> dict[str, object]:
    def loss(
        q: jax.Array, k: jax.Array, v: jax.Array, segment_ids_BxS: jax.Array | None
    ) -> jax.Array:
        out = causal_attention(q, k, v, "splash", jax.lax.Precision.DEFAULT, segment_ids_BxS)
        return jnp.square(out.astype(jnp.float32)).sum()

    by_heads = sharding(mesh, ("batch", "heads", "length", "head_dim"))
    q, k = (
        jax.ShapeDtypeStruct((4, heads, length, head_dim), jnp.bfloat16, sharding=by_heads)
        for heads in (4, kv_heads)
    )
    rows = sharding(mesh, ("batch", "length"))
    segment_ids_BxS = jax.ShapeDtypeStruct((4, length), jnp.int32, sharding=rows)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    lowered = gradient.lower(q, k, k, segment_ids_BxS if segmented else None)
    return kernels_and_collectives(lowered.compile())


def model_gradient(mesh: Mesh, remat: str) -> dict[str, object]:
    compute = ComputeConfig(attention="splash", remat=remat)

    def loss(params: dict[str, jax.Array], tokens_BxS: jax.Array) -> jax.Array:
        log_probs = jax.nn.log_softmax(architecture.logits(params, tokens_BxS, MODEL, compute))
        return -jnp.take_along_axis(log_probs[:, :-1], tokens_BxS[:, 1:, None], axis=-1).mean()

    declarations = architecture.declare(MODEL)
    shardings = param_shardings(mesh, declarations)
    params = tree.unflatten(
        {
            path: jax.ShapeDtypeStruct(d.shape, d.dtype, sharding=shardings[path])
            for path, d in declarations.items()
        }
    )
    tokens_BxS = jax.ShapeDtypeStruct(
        (8, 256), jnp.int32, sharding=sharding(mesh, ("batch", "length"))
    )
    return kernels_and_collectives(jax.jit(jax.grad(loss)).lower(params, tokens_BxS).compile())


def main() -> None:
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    devices = np.array(topology.devices).reshape(1, 2, 1, 2)
    mesh = Mesh(devices, MESH_AXES, axis_types=(AxisType.Auto,) * 4)
    with jax.set_mesh(mesh):
        report = {
            f"attention head_dim={head_dim} length={length} kv_heads={kv_heads}": (
                attention_gradient(mesh, head_dim, length, kv_heads)
            )
            for head_dim, length, kv_heads in ((64, 1024, 2), (128, 640, 4), (64, 128, 4))
        }
        report["attention segmented"] = attention_gradient(mesh, 64, 256, 2, segmented=True)
        report |= {
            f"model remat={remat}": model_gradient(mesh, remat)
            for remat in ("none", "minimal", "full")
        }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
