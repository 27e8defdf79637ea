"""The optimizer's state after a growth, against Adam in NumPy, and in whole runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax import tree
from prts_jax.cli.grow import main
from prts_jax.config import OptimizerConfig
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.operators import make_map
from prts_jax.growth.optimizer import grow_optimizer
from prts_jax.mesh import make_mesh, param_shardings
from prts_jax.model.architecture import declare, losses
from prts_jax.train.muon import is_matrix
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import TrainState, stage_step_array
from prts_jax.train.step import make_train_step
from tests.train import tiny
from tests.train.one_step import make_batch, start

BEFORE, AFTER = 3, 4  # steps
CONFIG = tiny.run_config(optimizer__clip=0.0, schedule__warmup_steps=5)
WIDER = dataclasses.replace(tiny.MODEL, layers=4, embed=64, mlp=72, heads=8, kv_heads=4)
BATCHES = [make_batch() for _ in range(BEFORE + AFTER)]
RATE = 3e-3


def flat(values) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tree.named_leaves(values).items()}


@functools.lru_cache
def before(optimizer: OptimizerConfig) -> tuple[TrainState, jax.sharding.Mesh]:
    """The state after some steps of the tiny model."""
    config = dataclasses.replace(CONFIG, optimizer=optimizer)
    state, step = start(config)
    for batch in BATCHES[:BEFORE]:
        state, _ = step(state, batch)
    return state, make_mesh(config.mesh)


def grown(growth_map, config, optimizer) -> TrainState:
    state, mesh = before(config.optimizer)
    declarations = declare(growth_map.target)
    params = grow_params(
        state.params,
        growth_map,
        declarations,
        param_shardings(mesh, declarations),
    )
    moments = grow_optimizer(
        state.optimizer,
        growth_map,
        declarations,
        optimizer.init,
        params,
        None,
        config.init.growth.optimizer,
    )
    return TrainState(params, moments, stage_step_array(0, mesh))


@functools.lru_cache
def gradient_function(model):
    def loss(params, batch):
        of_token = losses(params, batch["tokens"], batch["targets"], model, CONFIG.compute)
        return jnp.mean(of_token)

    return jax.jit(jax.grad(loss))


def is_new(path: str, shape) -> np.ndarray:
    """New entries by the shapes alone: stacks and splits append copies behind the source's."""
    source = declare(tiny.MODEL)[path].shape
    inside = np.zeros(shape, bool)
    inside[tuple(slice(0, size) for size in source)] = True
    return ~inside


def by_hand(params, mu, nu, config, growth_map) -> dict[str, np.ndarray]:
    """Adam in float64, whose count goes on, with the rates of the policy."""
    policy, growth = config.init.growth.optimizer, config.init.growth
    for s in range(AFTER):
        nested = tree.unflatten({path: jnp.float32(leaf) for path, leaf in params.items()})
        gradient = flat(gradient_function(growth_map.target)(nested, BATCHES[BEFORE + s]))
        count = BEFORE + s + 1
        rate = RATE * min(1, count / 5)
        for path, g in gradient.items():
            mu[path] = 0.9 * mu[path] + 0.1 * g
            nu[path] = 0.95 * nu[path] + 0.05 * g**2
            corrected = mu[path] / (1 - 0.9**count), nu[path] / (1 - 0.95**count)
            update = corrected[0] / (np.sqrt(corrected[1]) + 1e-8) + 0.1 * params[path]
            rates = np.full(g.shape, rate)
            if policy == "asymmetric" and s < growth.new_rate_steps:
                rising = growth.new_rate * (s + 1) / growth.new_rate_steps
                rates[is_new(path, g.shape)] *= rising
            params[path] = params[path] - rates * update
    return params


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["keep", "asymmetric"])
def test_steps_after_a_growth_in_depth_and_width_are_adams(policy):
    config = tiny.changed(
        CONFIG,
        init__growth__optimizer=policy,
        init__growth__new_rate_steps=3,
        schedule__after_growth="keep",
    )
    growth_map = make_map(tiny.MODEL, WIDER, "split", norm="rms")
    optimizer = make_optimizer(dataclasses.replace(config, model=WIDER))
    state = grown(growth_map, config, optimizer)
    grown_leaves = flat(state.optimizer)
    mu, nu = (
        {path: grown_leaves[f"1/{name}/{path}"] for path in declare(WIDER)} for name in ("mu", "nu")
    )
    if policy == "asymmetric":
        source = flat(before(config.optimizer)[0].optimizer)
        for path in mu:
            old = tuple(slice(0, size) for size in source[f"1/mu/{path}"].shape)
            np.testing.assert_array_equal(mu[path][old], source[f"1/mu/{path}"])
            np.testing.assert_array_equal(nu[path][old], source[f"1/nu/{path}"])
            assert not mu[path][is_new(path, mu[path].shape)].any()
            assert not nu[path][is_new(path, nu[path].shape)].any()
    expected = by_hand(flat(state.params), dict(mu), dict(nu), config, growth_map)
    asymmetric = growth_map if policy == "asymmetric" else None
    step = make_train_step(
        dataclasses.replace(config, model=WIDER),
        optimizer,
        grown_at=BEFORE,
        asymmetric=asymmetric,
    )
    for batch in BATCHES[BEFORE:]:
        state, _ = step(state, batch)
    for path, leaf in flat(state.params).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=2e-4, atol=2e-5, err_msg=path)


def test_muons_momentum_of_new_entries_starts_from_zero():
    muon = dataclasses.replace(CONFIG.optimizer, kind="muon")
    config = tiny.changed(CONFIG, optimizer=muon, init__growth__optimizer="asymmetric")
    growth_map = make_map(tiny.MODEL, WIDER, "split")
    optimizer = make_optimizer(dataclasses.replace(config, model=WIDER))
    leaves = flat(grown(growth_map, config, optimizer).optimizer)
    source = flat(before(config.optimizer)[0].optimizer)
    traces = [path for path in leaves if "trace/" in path]
    assert len(traces) == sum(is_matrix(d) for d in declare(WIDER).values())
    for path in traces:
        old = tuple(slice(0, size) for size in source[path].shape)
        np.testing.assert_array_equal(leaves[path][old], source[path])
        assert not leaves[path][is_new(path.partition("trace/")[2], leaves[path].shape)].any()


@pytest.mark.slow
def test_runs_grow_on_the_mesh_as_on_disk_and_resume(base, run, tmp_path, capsys):
    """The lineage books the policy; the schedule goes on; a resumed run has the same values."""
    deep = {"model": tiny.deeper(4), "init__growth__new_rate_steps": 3, "schedule__warmup_steps": 9}
    grows = {"init__grow_from": str(base.workdir), "init__growth__optimizer": "asymmetric"}
    run(tmp_path / "mesh", **deep, **grows, train__steps=4)
    printed = capsys.readouterr().err
    assert "moments copied" in printed
    argv = [f"--source={base.workdir}", f"--target={tmp_path / 'grown'}", "--factor=2"]
    assert main([*argv, "--optimizer=asymmetric"]) == 0
    starts = {"init__start_from": str(tmp_path / "grown")}
    for steps in (2, 4):  # stopped and resumed
        run(tmp_path / "disk", **deep, **starts, train__steps=steps)
    on_mesh, on_disk = (tiny.stored_params(tmp_path / name) for name in ("mesh", "disk"))
    tiny.assert_same(on_mesh, on_disk)
    record = tiny.read_lineage(tiny.resolve(str(tmp_path / "disk"))).growth[-1]
    assert (record.at_step, record.optimizer) == (6, "asymmetric")
    rates = [line["learning_rate"] for line in tiny.read_lines(tmp_path / "mesh")[1:]]
    np.testing.assert_allclose(
        rates, [3e-3 * min(1, step / 9) for step in (7, 8, 9, 10)], rtol=1e-6
    )
