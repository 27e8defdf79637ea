"""Every moment of an optimizer has the sharding of its parameter, whatever wraps the optimizer."""

import jax
import optax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from prts_jax import tree
from prts_jax.config import OptimizerConfig
from prts_jax.mesh import abstract_params
from prts_jax.model.architecture import declare
from prts_jax.train.optim import adamw
from prts_jax.train.state import abstract_optimizer
from tests.train import tiny

ADAM = adamw(OptimizerConfig())


def matrices(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def labels(params):
    return jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "vector", params)


@pytest.mark.parametrize(
    ("optimizer", "moments"),
    [
        (ADAM, 2),
        (optax.masked(ADAM, matrices), 2),
        (optax.partition({"matrix": ADAM, "vector": optax.sgd(0.1, momentum=0.9)}, labels), 2),
        (optax.MultiSteps(ADAM, 2), 3),
    ],
    ids=["chain", "masked", "partition", "accumulated"],
)
def test_moments_have_the_sharding_of_their_parameters(optimizer, moments):
    mesh = AbstractMesh((2, 2, 1, 2), ("data", "fsdp", "sequence", "tensor"))
    params = abstract_params(declare(tiny.MODEL), mesh)
    state = tree.named_leaves(abstract_optimizer(optimizer, params, mesh))
    for path, parameter in tree.flatten(params).items():
        kept = [leaf for name, leaf in state.items() if name.endswith(f"/{path}")]
        assert len(kept) == moments or len(parameter.shape) == 1, path
        for leaf in kept:
            assert leaf.sharding == parameter.sharding, path
    split = [leaf for leaf in state.values() if leaf.sharding.spec != PartitionSpec()]
    assert len(split) >= moments * len([1 for leaf in jax.tree.leaves(params) if leaf.ndim > 1])
    assert all(leaf.shape for leaf in split)
