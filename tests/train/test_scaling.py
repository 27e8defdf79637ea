"""Multipliers of a learning rate that transfers: by hand, after growth, and by coordinates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import coordinate_check
from prts_jax import tree
from prts_jax.config import ScalingConfig
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.operators import make_map
from prts_jax.mesh import make_mesh, param_shardings
from prts_jax.model.architecture import declare, losses
from prts_jax.model.initialise import standard_deviation
from prts_jax.train.optim import make_optimizer
from prts_jax.train.scaling import multipliers
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step
from tests.train import tiny
from tests.train.one_step import make_batch, start

# Twice the width, four times the depth of the proxy, which is `tiny.MODEL`; three times its MLP.
LARGE = dataclasses.replace(tiny.MODEL, layers=8, embed=64, heads=8, kv_heads=4, mlp=144)
PROXY = {"embed": 32, "heads": 4, "mlp": 48}
COMPLETE = ScalingConfig("completep", layers=2, **PROXY)
RATES = {
    "token_embedding": 1,
    "layers/attention/q": 1 / 2,
    "layers/attention/o": 1 / (2 * 4),
    "layers/mlp/up": 1 / 2,
    "layers/mlp/down": 1 / (3 * 4),
    "layers/mlp_norm": 1,
    "final_norm": 1,
    "head": 1 / 2,
}
EPSILONS = {
    "token_embedding": 1 / 2,
    "layers/attention/q": 1 / 8,
    "layers/attention/o": 1 / 2,
    "layers/mlp/up": 1 / 8,
    "layers/mlp/down": 1 / 2,
    "layers/mlp_norm": 1 / 8,
    "final_norm": 1 / 2,
    "head": 1,
}


def config_of(scaling: ScalingConfig, model=LARGE, **changes):
    return dataclasses.replace(tiny.run_config(model=model, **changes), scaling=scaling)


def test_rates_and_epsilons_are_the_tables():
    of_leaves = multipliers(config_of(COMPLETE))
    assert {path: of_leaves[path].rate for path in RATES} == pytest.approx(RATES)
    assert {path: of_leaves[path].eps for path in EPSILONS} == pytest.approx(EPSILONS)
    only_width = multipliers(config_of(ScalingConfig("mup", **PROXY)))
    assert only_width["layers/attention/o"].rate == pytest.approx(1 / 2)
    assert only_width["layers/mlp/down"].rate == pytest.approx(1 / 3)
    assert multipliers(config_of(COMPLETE))["layers/attention/k"].rate == pytest.approx(1 / 2)
    proxys = multipliers(config_of(COMPLETE, tiny.MODEL)).values()
    assert {tuple(multiplier) for multiplier in proxys} == {(1.0, 1.0, 1.0)}


@pytest.mark.parametrize("kind", ["paper", "torch_default"])
def test_fresh_values_are_the_proxys_times_the_tables(kind):
    of_leaves = multipliers(config_of(COMPLETE, init__kind=kind))
    expected = {
        "token_embedding": 1,
        "layers/attention/q": 2**-0.5,
        "layers/attention/o": 2**-0.5 / 4,
        "layers/mlp/up": 2**-0.5,
        "layers/mlp/down": 3**-0.5 / 4,
        "head": 1 / 2,
    }
    for path, ratio in expected.items():
        ours = standard_deviation(declare(LARGE)[path], 8, kind) * of_leaves[path].init
        proxys = standard_deviation(declare(tiny.MODEL)[path], 2, kind)
        assert ours / proxys == pytest.approx(ratio), path


def test_the_norm_before_a_tied_head_takes_the_heads_multipliers():
    tied = multipliers(config_of(COMPLETE, dataclasses.replace(LARGE, tied=True)))
    assert tuple(tied["final_norm"]) == (1 / 2, 1 / 2, 1.0)
    assert tied["token_embedding"].rate == 1.0


def test_a_step_after_growth_has_the_multipliers_of_the_grown_shape():
    """Against Adam's first step in NumPy: rate · g / (|g| + ε), then decay at the common rate."""
    eps = 1e-3  # large enough that its multiplier shows
    changes = {"optimizer__clip": 0.0, "optimizer__eps": eps, "schedule__warmup_steps": 0}
    state, _ = start(config_of(COMPLETE, tiny.MODEL, **changes))
    growth_map = make_map(tiny.MODEL, dataclasses.replace(LARGE, mlp=96), "split")
    model, config = growth_map.target, config_of(COMPLETE, growth_map.target, **changes)
    mesh, declarations = make_mesh(config.mesh), declare(model)
    params = grow_params(
        state.params, growth_map, declarations, param_shardings(mesh, declarations)
    )
    before = {path: np.asarray(leaf, np.float64) for path, leaf in tree.flatten(params).items()}
    batch = make_batch()

    def loss(params):
        return jnp.mean(losses(params, batch["tokens"], batch["targets"], model, config.compute))

    gradient = tree.flatten(jax.jit(jax.grad(loss))(params))
    optimizer = make_optimizer(config)
    after, _ = make_train_step(config, optimizer)(fresh_state(params, optimizer, mesh), batch)
    rates = RATES | {"layers/mlp/down": 1 / (2 * 4)}
    leaves = tree.flatten(after.params)
    for path, rate in rates.items():
        g = np.asarray(gradient[path], np.float64)
        update = rate * g / (np.abs(g) + eps * EPSILONS[path]) + 0.1 * before[path]
        np.testing.assert_allclose(
            leaves[path], before[path] - 3e-3 * update, rtol=1e-4, atol=2e-6, err_msg=path
        )


@pytest.mark.slow
def test_activations_move_by_as_much_at_any_width_and_depth():
    """A coordinate check: the stream's change over four steps of the proxy's rate."""
    moved = {
        (kind, *shape): coordinate_check.movement(kind, *shape, rate=1e-2, steps=4)["stream"]
        for kind in ("none", "completep")
        for shape in ((64, 2), (256, 2), (64, 8))
    }
    for shape in ((256, 2), (64, 8)):
        assert moved["none", *shape] > 4 * moved["none", 64, 2]
        assert moved["completep", *shape] == pytest.approx(moved["completep", 64, 2], rel=0.25)
