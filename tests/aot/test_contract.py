"""Every shipped run for TPUs: its mesh fits its slice, and devices hold and exchange no more.

The train step is lowered for a mesh without devices, or partitioned for virtual ones; neither a
TPU nor its compiler is needed.
"""

import json
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType

from prts_jax.aot.programs import abstract_batch, abstract_state, for_tpu
from prts_jax.aot.run import check_batch
from prts_jax.config import RunConfig, resolve
from prts_jax.config.rules import MESH_AXES
from prts_jax.mesh import axis_size, mesh_shape
from prts_jax.train.optim import make_optimizer
from prts_jax.train.step import make_train_step
from tests.aot.programs.exchanged_bytes import CHIPS
from tests.conftest import ROOT, prts_environment

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "tpu.py"))
MIB = 2**20
BYTES = {"f32": 4, "bf16": 2, "i32": 4, "i1": 1}
CONSTRAINT = re.compile(r"sdy\.sharding_constraint .*<@mesh, \[(.*)\]> : tensor<(.*)>")


def run_and_mesh(name: str) -> tuple[RunConfig, AbstractMesh]:
    """Returns a shipped run, and the mesh of its slices without devices."""
    _, topology, slices, *_ = CONFIG["RUNS"][name]
    config = resolve(CONFIG["get_config"](name))
    sizes = mesh_shape(config.mesh, CONFIG["chips"](topology) * slices)
    return config, AbstractMesh(tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * 4)


def constraints(text: str, mesh: AbstractMesh) -> list[tuple[str, float, int]]:
    """Returns (constraint, MiB of the whole array, parts that it is split into) of a program."""
    actual = []
    for match in CONSTRAINT.finditer(text):
        *shape, dtype = match[2].split("x")
        size = math.prod(map(int, shape)) * BYTES[dtype]
        axes = re.findall(r'"(\w+)"', match[1])
        actual.append((match[0], size / MIB, math.prod(mesh.shape[axis] for axis in axes)))
    return actual


@pytest.mark.parametrize("name", CONFIG["RUNS"])
def test_the_state_is_split_over_all_devices_of_a_slice(name: str) -> None:
    config, mesh = run_and_mesh(name)
    check_batch(config, axis_size(mesh, "batch"))
    whole = split = 0
    for leaf in jax.tree.leaves(abstract_state(config, mesh)):
        whole += math.prod(leaf.shape) * leaf.dtype.itemsize
        split += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    # The axis data holds copies; only counts and norms over a head are whole on every device.
    assert split * mesh.size == pytest.approx(whole * config.mesh.data, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIG["RUNS"])
def test_no_large_array_of_a_step_is_whole_on_a_device(name: str) -> None:
    config, mesh = run_and_mesh(name)
    config = for_tpu(config, mesh)
    with jax.sharding.use_abstract_mesh(mesh):
        step = make_train_step(config, make_optimizer(config), sources=7)
        batch = abstract_batch(config, mesh, config.data.batch)
        traced = step.trace(abstract_state(config, mesh), batch, None)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    actual = constraints(text, mesh)
    assert len(actual) > 20
    # Parameters and gradients have a copy for each part of the axis data.
    copied = [each for each in actual if each[1] > 1 and each[2] * config.mesh.data < mesh.size]
    assert copied == []
    tokens = config.data.batch * config.data.length // axis_size(mesh, "batch")
    logits = 4 * config.model.vocab * tokens / config.compute.loss_chunks / MIB
    assert max(size / parts for _, size, parts in actual) <= logits


@pytest.fixture(scope="module")
def exchanges() -> dict[str, dict[str, Any]]:
    """Returns what tests/aot/programs/exchanged_bytes.py prints."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.aot.programs.exchanged_bytes"],
        cwd=ROOT,
        env=prts_environment(2 * CHIPS, None),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIG["RUNS"])
def test_a_step_exchanges_weights_gradients_and_rows_of_the_embedding(
    name: str, exchanges: dict[str, dict[str, Any]]
) -> None:
    """Bytes of all collectives; the network between slices carries gradients of a device's part."""
    run = exchanges[name]
    parameters, table = run["parameters"], run["table"]
    head_kept = table if run["chunks"] == 1 else 0
    expected = {
        # Forward and backward; the embedding stays where it is.
        ("all-gather", "fsdp"): 2 * (parameters - table) - head_kept,
        # The head's gradient once for each chunk of the loss.
        ("all-reduce", "fsdp"): parameters - 2 * table + run["chunks"] * table,
        # Rows of the embedding to their devices, and their gradients back.
        ("all-to-all", "fsdp"): 2 * run["activation"],
    }
    if resolve(CONFIG["get_config"](name)).mesh.data > 1:
        head_again = (run["chunks"] - 1) * table / CHIPS
        expected["all-reduce", "data"] = parameters / CHIPS + head_again
    exchanged = {(kind, axes): total for kind, axes, total in run["exchanged"]}
    for key, bytes_ in expected.items():
        assert exchanged.pop(key) == pytest.approx(bytes_, rel=1e-3)
    # Norms of gradients, losses and the weights of norms.
    assert sum(exchanged.values()) < 1e-4 * parameters


@pytest.mark.parametrize("name", CONFIG["RUNS"])
def test_a_base_has_a_quarter_of_the_layers(name: str) -> None:
    grown, base = (resolve(CONFIG["get_config"](f"{name},{run}")) for run in ("grown", "base"))
    assert grown.model.layers == 4 * base.model.layers
