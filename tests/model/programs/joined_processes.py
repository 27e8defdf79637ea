"""One of several processes that share a mesh: the loss of a model that is split over all of them.

Run by test_sharded_model.py as `joined_processes.py COORDINATOR PROCESSES PROCESS`. Prints one JSON
object.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.config import ComputeConfig, MeshConfig, ModelConfig
from prts_jax.distributed import start_distributed
from prts_jax.mesh import make_mesh, param_shardings, sharding
from prts_jax.model import architecture
from prts_jax.model.initialise import init_params

MODEL = ModelConfig(vocab=64, layers=3, embed=48, heads=4, kv_heads=2, head_dim=8, mlp=96)
COMPUTE = ComputeConfig(dtype="float32", attention="xla")


def next_token_loss(params: dict[str, jax.Array], tokens_BxS: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(architecture.logits(params, tokens_BxS, MODEL, COMPUTE))[:, :-1]
    return -jnp.take_along_axis(log_probs, tokens_BxS[:, 1:, None], axis=-1).mean()


def main(coordinator: str, processes: str, process: str) -> None:
    joined, index = start_distributed(
        coordinator=coordinator, processes=int(processes), process=int(process)
    )
    devices = jax.device_count()
    mesh = make_mesh(MeshConfig(fsdp=-1, tensor=min(2, devices)))
    declarations = architecture.declare(MODEL)
    shardings = param_shardings(mesh, declarations)
    tokens_BxS = np.random.default_rng(0).integers(0, MODEL.vocab, (8, 16), dtype=np.int32)
    with jax.set_mesh(mesh):
        params = init_params(declarations, MODEL.layers, "paper", 3, shardings)
        split = jax.make_array_from_callback(
            tokens_BxS.shape, sharding(mesh, ("batch", "length")), lambda where: tokens_BxS[where]
        )
        loss = jax.jit(next_token_loss, out_shardings=sharding(mesh, ()))(params, split)
    report = {"processes": joined, "process": index, "devices": devices, "loss": float(loss)}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
