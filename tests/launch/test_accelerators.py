"""Accelerator types against the examples of the Cloud TPU documentation."""

import pytest

from prts_jax.errors import UserError
from prts_jax.launch import accelerators


@pytest.mark.parametrize(
    ("name", "chips", "runtime_version"),
    [
        ("v2-8", 4, "tpu-ubuntu2204-base"),
        ("v3-32", 16, "tpu-ubuntu2204-base"),
        ("v4-8", 4, "tpu-ubuntu2204-base"),
        ("v5litepod-16", 16, "v2-alpha-tpuv5-lite"),
        ("v5p-128", 64, "v2-alpha-tpuv5"),
        ("v6e-256", 256, "v2-alpha-tpuv6e"),
    ],
)
def test_size_counts_cores_or_chips_by_generation(name, chips, runtime_version):
    accelerator = accelerators.parse(name)
    assert accelerator.chips == chips
    assert accelerator.generation.machine.runtime_version == runtime_version


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v5e-16", "v5litepod-16"),
        ("v5lite-8", "v5litepod-8"),
        ("7x-16", "tpu7x-16"),
        ("v7-8", "did you mean 'v7x'"),
        ("v6e-512", "256"),
        ("v5p-12", "multiple of 8"),
        ("v5p-0", "GENERATION-SIZE"),
        ("v5p", "GENERATION-SIZE"),
        ("", "GENERATION-SIZE"),
    ],
)
def test_unknown_accelerator_types_are_refused_with_a_suggestion(name, message):
    with pytest.raises(UserError, match=message):
        accelerators.parse(name)


@pytest.mark.parametrize(
    ("name", "hosts", "topology"),
    [
        ("v4-8", 1, "2x2x1"),
        ("v5litepod-8", 1, "2x4"),
        ("v5litepod-16", 4, "4x4"),
        ("v5litepod-256", 64, "16x16"),
        ("v5p-8", 1, "2x2x1"),
        ("v5p-32", 4, "2x2x4"),
        ("v5p-128", 16, "4x4x4"),
        ("v6e-1", 1, "1x1"),
        ("v6e-128", 32, "8x16"),
        ("tpu7x-16", 2, "2x2x2"),
        ("tpu7x-256", 32, "4x4x8"),
        ("v5p-24", 3, ""),
    ],
)
def test_hosts_and_topology_follow_from_the_name(name, hosts, topology):
    accelerator = accelerators.parse(name)
    assert (accelerator.hosts, accelerator.topology) == (hosts, topology)
