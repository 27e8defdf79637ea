"""Muon against its equations in NumPy, on a mesh, and through growth and resume."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax import tree
from prts_jax.cli.grow import main
from prts_jax.config import OptimizerConfig
from prts_jax.model.architecture import declare
from prts_jax.train.loop import train
from prts_jax.train.muon import is_matrix
from prts_jax.train.optim import apply_updates, make_optimizer
from tests.conftest import ROOT, prts_environment
from tests.train import tiny

MUON = OptimizerConfig(kind="muon", clip=0.0, decay="matrices")
RATES = [1e-2, 3e-2, 2e-2]
DECLARATIONS = declare(tiny.MODEL)
KEYS = {"optimizer__kind": "muon", "optimizer__decay": "matrices"}


def random_leaves(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {path: rng.standard_normal(d.shape) for path, d in DECLARATIONS.items()}


def orthogonalized(matrix: np.ndarray) -> np.ndarray:
    """Five quintic Newton–Schulz steps on a matrix of unit Frobenius norm, in float64."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x - 4.7750 * square @ x + 2.0315 * square @ square @ x
    return x


def muon_by_hand(start, gradients) -> dict[str, np.ndarray]:
    """Muon for the layers' matrices (in × out), Adam for the rest; only matrices decay."""
    params = {path: leaf.copy() for path, leaf in start.items()}
    momentum = {path: np.zeros_like(leaf) for path, leaf in start.items()}
    mu, nu = ({path: np.zeros_like(leaf) for path, leaf in start.items()} for _ in range(2))
    for step, (rate, gradient) in enumerate(zip(RATES, gradients, strict=True), start=1):
        for path, g in gradient.items():
            declaration, decay = DECLARATIONS[path], 0.0
            if is_matrix(declaration):
                momentum[path] = 0.95 * momentum[path] + g
                look_ahead = g + 0.95 * momentum[path]
                # Contracted axes come first in all matrices but the output projection's heads.
                inputs = np.prod(
                    [s for a, s in zip(declaration.axes, g.shape, strict=True)
                     if a in declaration.contracts]
                ).astype(int)  # fmt: skip
                matrices = look_ahead.reshape(len(g), inputs, -1)
                update = np.stack([orthogonalized(m) for m in matrices])
                update *= 0.2 * np.sqrt(max(update.shape[1:]))
                update, decay = update.reshape(g.shape), 0.1
            else:
                mu[path] = 0.9 * mu[path] + 0.1 * g
                nu[path] = 0.95 * nu[path] + 0.05 * g**2
                corrected = mu[path] / (1 - 0.9**step), nu[path] / (1 - 0.95**step)
                update = corrected[0] / (np.sqrt(corrected[1]) + 1e-8)
                decay = 0.1 if path == "head" else 0.0
            params[path] = params[path] - rate * (update + decay * params[path])
    return params


def test_three_steps_are_muon_for_matrices_and_adam_for_the_rest():
    start, gradients = random_leaves(0), [random_leaves(seed) for seed in (1, 2, 3)]
    run = dataclasses.replace(tiny.run_config(), optimizer=MUON)
    optimizer = make_optimizer(run)
    to_jax = lambda leaves: tree.unflatten(jax.tree.map(jnp.float32, leaves))  # noqa: E731
    params = to_jax(start)
    state = optimizer.init(params)
    step = jax.jit(optimizer.update)
    for rate, gradient in zip(RATES, gradients, strict=True):
        updates, state = step(to_jax(gradient), state, params)
        params = apply_updates(params, updates, jnp.float32(rate))
    by_hand = muon_by_hand(start, gradients)
    assert sum(is_matrix(d) for d in DECLARATIONS.values()) == 7
    for path, leaf in tree.flatten(params).items():
        np.testing.assert_allclose(leaf, by_hand[path], rtol=3e-5, atol=3e-6, err_msg=path)


@pytest.mark.slow
def test_on_a_mesh_each_device_orthogonalises_its_own_layers():
    """Eight devices, three layers: the same updates, and no device gathers a whole stack."""
    command = [sys.executable, "-m", "tests.train.programs.muon_on_a_mesh"]
    environment = prts_environment(8, None)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]


@pytest.fixture(scope="module")
def muon_base(stores, tmp_path_factory):
    """Four steps of Muon and their checkpoint."""
    workdir = tmp_path_factory.mktemp("muon") / "base"
    train(tiny.run_config(data__train=stores.train, **KEYS, train__steps=4), str(workdir))
    return workdir


def test_momentum_grows_on_the_mesh_as_on_disk(muon_base, run, tmp_path):
    deep = {**KEYS, "model": tiny.deeper(4), "train__steps": 2}
    copied = {"init__grow_from": str(muon_base), "init__growth__optimizer": "copy"}
    run(tmp_path / "mesh", **deep, **copied)
    argv = [f"--source={muon_base}", f"--target={tmp_path / 'grown'}", "--operator=stack"]
    assert main([*argv, "--factor=2", "--optimizer=copy"]) == 0
    run(tmp_path / "disk", **deep, init__start_from=str(tmp_path / "grown"))
    on_mesh, on_disk = (tiny.stored_params(tmp_path / name) for name in ("mesh", "disk"))
    tiny.assert_same(on_mesh, on_disk)


def test_a_resumed_run_has_the_same_parameters(muon_base, run, tmp_path):
    for steps in (2, 4):
        run(tmp_path / "run", **KEYS, train__steps=steps)
    tiny.assert_same(tiny.stored_params(tmp_path / "run"), tiny.stored_params(muon_base))
