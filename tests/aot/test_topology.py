"""Slices that the compiler knows, and meshes over their devices."""

import pytest

from prts_jax.aot.topology import open_topology
from prts_jax.config import MeshConfig
from prts_jax.errors import UserError
from prts_jax.mesh import make_mesh

pytest.importorskip("libtpu")
pytestmark = pytest.mark.usefixtures("flags_for_libtpu")


@pytest.mark.parametrize(
    ("name", "slices", "mesh", "shape"),
    [
        ("v5e:16x16", 1, MeshConfig(tensor=4), (1, 64, 4)),
        ("v5e:16x16", 1, MeshConfig(tensor=8), (1, 32, 8)),
        ("v5e:4x4", 1, MeshConfig(tensor=2), (1, 8, 2)),
        ("v5e:4x4", 1, MeshConfig(data=2), (2, 8, 1)),
        ("v5p:4x4x4", 1, MeshConfig(tensor=2), (1, 32, 2)),
        ("v4:2x2x1", 1, MeshConfig(), (1, 4, 1)),
        ("tpu7x:2x2x1", 1, MeshConfig(tensor=2), (1, 4, 2)),
        ("v5e:4x4", 2, MeshConfig(data=2), (2, 16, 1)),
        ("v5e:4x4", 2, MeshConfig(data=4, tensor=2), (4, 4, 2)),
    ],
)
def test_a_mesh_fills_the_slices(
    name: str, slices: int, mesh: MeshConfig, shape: tuple[int, ...]
) -> None:
    topology = open_topology(name, slices)
    built = make_mesh(mesh, topology.devices)
    assert tuple(built.shape[axis] for axis in ("data", "fsdp", "tensor")) == shape
    assert len(set(built.devices.reshape(-1).tolist())) == len(topology.devices)


def test_only_the_data_axis_crosses_slices() -> None:
    devices = make_mesh(MeshConfig(data=2), open_topology("v5e:4x4", 2).devices).devices
    assert [{device.slice_index for device in half.reshape(-1)} for half in devices] == [{0}, {1}]


def test_slices_without_a_data_axis_are_refused() -> None:
    with pytest.raises(UserError, match=r"config\.mesh\.data: 1 does not divide among 2 slices"):
        make_mesh(MeshConfig(), open_topology("v5e:4x4", 2).devices)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e:0x4", "is not GENERATION:SHAPE"),  # with it the compiler ends the process
        ("v9:4x4", "is not GENERATION:SHAPE"),
        ("v5p:4x4", "slices of v5p have 3 edges; write one such as v5p:4x4x4"),
        ("v5e:2x2x2", "slices of v5e have 2 edges; write one such as v5e:4x4"),
        ("v6e:16x32", "no slice has 512 chips"),
        ("v5e:3x1", "the compiler has no such slice"),
    ],
)
def test_slices_that_do_not_exist_are_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_topology(name)


def test_chips_and_memory_come_from_the_table() -> None:
    topology = open_topology("tpu7x:2x2x1")
    assert (topology.chips, len(topology.devices)) == (4, 8)
    assert topology.hbm_bytes_per_device == 96 * 2**30
