"""A random batch and a fresh state for tests of a single training step."""

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.mesh import make_mesh
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import init_params
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step
from tests.train import tiny

NO_CLIP = {"optimizer__clip": 0.0}


def make_batch(rows: int = 8, length: int = 16, weights=None) -> dict[str, jax.Array]:
    """Returns a batch of random tokens from three sources."""
    random = np.random.default_rng(0)
    tokens = random.integers(0, tiny.MODEL.vocab, (rows, length + 1)).astype(np.int32)
    return {
        "tokens": jnp.asarray(tokens[:, :-1]),
        "targets": jnp.asarray(tokens[:, 1:]),
        "loss_weights": jnp.ones((rows, length)) if weights is None else jnp.asarray(weights),
        "source_ids": jnp.asarray(random.integers(0, 3, (rows, length)), jnp.int32),
    }


def uneven_weights(rows: int = 8, length: int = 16) -> np.ndarray:
    """Returns weights whose sum differs from row to row; some tokens count by half."""
    random = np.random.default_rng(3)
    weights = random.choice([0.0, 0.5, 1.0], (rows, length)).astype(np.float32)
    weights[0], weights[1] = 0.0, 1.0
    return weights


def start(config):
    """Returns the initial state and the jitted step of the tiny model."""
    optimizer = make_optimizer(config)
    params = init_params(declare(tiny.MODEL), tiny.MODEL.layers, "paper", seed=0)
    mesh = make_mesh(config.mesh)
    params = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    return fresh_state(params, optimizer, mesh), make_train_step(config, optimizer)
