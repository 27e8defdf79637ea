"""Gradients and collectives of the train step on eight devices, with and without micro-batches.

Run by test_accumulation.py with eight virtual devices. Prints one JSON object: case → the largest
relative difference of the gradients from one device's, and the bytes and number of the
collectives of a step, loops multiplied out.
"""

import json
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax import tree
from prts_jax.aot.hlo import collective_kind, executed, parse
from prts_jax.aot.programs import abstract_batch, abstract_state
from prts_jax.config import RunConfig
from prts_jax.mesh import param_shardings, use_mesh
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import init_params
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step
from tests.train import tiny

FSDP = {"mesh__data": 2, "mesh__fsdp": 4}
CASES: dict[str, dict[str, Any]] = {
    "whole batch": FSDP,
    "micro_batch": FSDP | {"train__accumulation": 4, "mesh__reduce_gradients": "micro_batch"},
    "step": FSDP | {"train__accumulation": 4, "mesh__reduce_gradients": "step"},
    "step with tensor": {
        "mesh__fsdp": 2,
        "mesh__sequence": 2,
        "mesh__tensor": 2,
        "train__accumulation": 2,
        "mesh__reduce_gradients": "step",
    },
}
CHANGES: dict[str, Any] = {"data__batch": 32, "data__documents": True, "optimizer__clip": 0.0}


def random_batch(config: RunConfig) -> dict[str, jax.Array]:
    """Returns rows of two documents; weights differ between rows."""
    random = np.random.default_rng(0)
    shape = (config.data.batch, config.data.length)
    tokens = random.integers(0, config.model.vocab, (2, *shape)).astype(np.int32)
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return {
        "tokens": jnp.asarray(tokens[0]),
        "targets": jnp.asarray(tokens[1]),
        "loss_weights": jnp.asarray(random.choice([0.0, 0.5, 1.0], shape), jnp.float32),
        "source_ids": jnp.asarray(random.integers(0, 3, shape), jnp.int32),
        "segment_ids": jnp.asarray(positions // 10),
        "positions": jnp.asarray(positions % 10),
    }


def step_of(config: RunConfig) -> tuple[dict[str, np.ndarray], dict[str, dict[str, int]]]:
    """Returns the first moments after one step, multiples of its gradients, and its collectives."""
    optimizer = make_optimizer(config)
    with use_mesh(config.mesh, jax.devices()[: 1 if config.mesh.fsdp == 1 else 8]) as mesh:
        declarations = declare(config.model)
        shardings = param_shardings(mesh, declarations)
        params = init_params(declarations, config.model.layers, "paper", 3, shardings)
        state = fresh_state(params, optimizer, mesh)
        abstract = abstract_batch(config, mesh, config.data.batch)
        batch = {
            name: jax.device_put(x, abstract[name].sharding)
            for name, x in random_batch(config).items()
        }
        step = make_train_step(config, optimizer, sources=3)
        compiled = step.lower(abstract_state(config, mesh), abstract, None).compile()
        after, _ = compiled(state, batch, None)
    actual: dict[str, dict[str, int]] = {}
    for each in executed(parse(compiled.as_text() or "")):
        if kind := collective_kind(each.instruction):
            entry = actual.setdefault(kind, {"count": 0, "bytes": 0})
            entry["count"] += each.times
            entry["bytes"] += each.times * each.instruction.bytes
    moments = tree.named_leaves(after.optimizer).items()
    return {path: np.asarray(x) for path, x in moments if "mu" in path.split("/")}, actual


def main() -> None:
    alone = tiny.run_config(**CHANGES, mesh__fsdp=1)
    expected, _ = step_of(alone)
    report = {}
    for name, changes in CASES.items():
        config = tiny.run_config(**CHANGES, **changes)
        gradients, actual = step_of(config)
        report[name] = {
            "error": max(
                float(np.abs(gradients[path] - x).max() / np.abs(x).max())
                for path, x in expected.items()
            ),
            "collectives": actual,
        }
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
