"""Grown parameters train as the paper says of its operators (App. A)."""

import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pytest

from prts_jax import tree
from prts_jax.checkpoint.layout import resolve
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.operators import make_map
from prts_jax.mesh import make_mesh, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import init_params
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import TrainState, fresh_state
from prts_jax.train.step import make_train_step
from tests.conftest import ROOT, prts_environment
from tests.train import tiny
from tests.train.one_step import make_batch

DEEPER = dataclasses.replace(tiny.MODEL, layers=4)
WIDER = dataclasses.replace(
    tiny.MODEL,
    **{axis: 2 * getattr(tiny.MODEL, axis) for axis in ("embed", "mlp", "heads", "kv_heads")},
)
CONFIG = tiny.run_config(optimizer__clip=0.0)
PROGRAM = "tests.train.programs.grow_on_an_uneven_mesh"


def trained(growth_map: GrowthMap, steps: int) -> tuple[dict, TrainState]:
    """Grows fresh parameters and trains them. Returns leaves before and the state after."""
    mesh, source, target = make_mesh(CONFIG.mesh), growth_map.source, growth_map.target
    declarations = {model: declare(model) for model in (source, target)}
    shardings = {model: param_shardings(mesh, declarations[model]) for model in (source, target)}
    params = init_params(declarations[source], source.layers, "paper", 0, shardings[source])
    params = grow_params(params, growth_map, declarations[target], shardings[target])
    before = host(params)
    optimizer = make_optimizer(CONFIG)
    state = fresh_state(params, optimizer, mesh)
    step = make_train_step(dataclasses.replace(CONFIG, model=target), optimizer)
    for _ in range(steps):
        state, _ = step(state, make_batch())
    return before, state


def host(values) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(values).items()}


def layers_of(leaves: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: leaf for path, leaf in leaves.items() if path.startswith("layers/")}


@pytest.mark.parametrize(
    "operator",
    ["stack", *[pytest.param(name, marks=pytest.mark.slow) for name in ("interpolate", "random")]],
)
def test_every_layer_is_trained_and_copies_part(operator):
    """The original's stage-wise operators left new layers out of the optimizer."""
    growth_map = make_map(tiny.MODEL, DEEPER, operator=operator)
    before, state = trained(growth_map, steps=2)
    for path, after in layers_of(host(state.params)).items():
        for layer in range(4):
            assert (after[layer] != before[path][layer]).any(), (path, layer)
            # Without a decay that big, only a gradient moves a parameter as far as the rate.
            moved = np.abs(after[layer] - before[path][layer]).max()
            assert moved > 0.5 * CONFIG.schedule.peak, (path, layer)
        for one, other in zip(*np.triu_indices(4, 1), strict=True):
            assert (after[one] != after[other]).any(), (path, one, other)


def test_of_silent_layers_only_the_outputs_have_a_gradient_at_first():
    """Nothing that a zero projection multiplies can change the loss, and what it writes can."""
    growth_map = make_map(tiny.MODEL, DEEPER, operator="zero")
    _, state = trained(growth_map, steps=1)
    # After one step without a clip the first moments are (1 - b1) times the gradient.
    gradients = layers_of(jax.tree.map(np.asarray, host(state.optimizer[1].mu)))
    outputs = {"layers/attention/o", "layers/mlp/down"}
    assert outputs < gradients.keys()
    for path, gradient in gradients.items():
        for layer in range(4):
            has_gradient = bool(np.abs(gradient[layer]).max() > 0)
            is_silent = layer in growth_map.zeroed
            assert has_gradient == (not is_silent or path in outputs), (path, layer)


def test_even_copies_stay_equal_and_uneven_ones_part():
    """Positions that give and get the same can never learn anything else (golden check 8)."""
    for weights, equal in (("even", True), ("uneven", False)):
        growth_map = make_map(tiny.MODEL, WIDER, operator="split", weights=weights)
        _, state = trained(growth_map, steps=5)
        leaves = host(state.params)
        for path, declaration in declare(WIDER).items():
            for at, axis in enumerate(declaration.axes):
                if axis not in growth_map.widths:
                    continue
                index = np.asarray(growth_map.widths[axis].index)
                copies = [np.flatnonzero(index == source) for source in range(index.max() + 1)]
                first, second = (
                    leaves[path].take([copy[which] for copy in copies], axis=at) for which in (0, 1)
                )
                assert (first == second).all() == equal, (weights, path, axis)


@pytest.mark.slow
def test_growth_on_a_mesh_that_does_not_divide_the_sources_heads_equals_that_on_one_device(base):
    done = subprocess.run(
        [sys.executable, "-m", PROGRAM, resolve(str(base.workdir))],
        cwd=ROOT,
        env=prts_environment(4, None),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
