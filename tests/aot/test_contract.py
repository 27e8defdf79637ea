"""Every shipped run for TPUs: its mesh fits its slice, and no device holds what it need not."""

import math
import runpy
from pathlib import Path

import jax
import pytest

from prts_jax.aot.programs import abstract_state
from prts_jax.aot.run import check_batch
from prts_jax.aot.topology import open_topology
from prts_jax.config import resolve
from prts_jax.mesh import axis_size, make_mesh

pytest.importorskip("libtpu")
pytestmark = pytest.mark.usefixtures("flags_for_libtpu")

CONFIG = runpy.run_path(str(Path(__file__).parents[2] / "configs" / "tpu.py"))


@pytest.mark.parametrize("name", CONFIG["RUNS"])
def test_the_state_is_split_over_all_devices_of_a_slice(name: str) -> None:
    _, topology_name, slices, *_ = CONFIG["RUNS"][name]
    config = resolve(CONFIG["get_config"](name))
    topology = open_topology(topology_name, slices)
    mesh = make_mesh(config.mesh, topology.devices)
    check_batch(config, axis_size(mesh, "batch"))
    whole = split = 0
    for leaf in jax.tree.leaves(abstract_state(config, mesh)):
        whole += math.prod(leaf.shape) * leaf.dtype.itemsize
        split += math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
    # The axis data holds copies; only counts and norms over a head are whole on every device.
    assert split * topology.chips == pytest.approx(whole * config.mesh.data, rel=1e-4)


@pytest.mark.parametrize("name", CONFIG["RUNS"])
def test_a_base_has_a_quarter_of_the_layers(name: str) -> None:
    grown, base = (resolve(CONFIG["get_config"](f"{name},{run}")) for run in ("grown", "base"))
    assert grown.model.layers == 4 * base.model.layers
