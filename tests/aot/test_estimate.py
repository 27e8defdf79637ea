"""The compiler's statement about a program."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from prts_jax.aot.estimate import estimate
from prts_jax.aot.topology import open_topology


@pytest.mark.slow
@pytest.mark.usefixtures("flags_for_libtpu")
def test_a_program_with_sparse_cores_has_a_time() -> None:
    """JAX cannot print one of a large embedding on v5p."""
    topology = open_topology("v5p:2x2x1")
    mesh = Mesh(topology.devices, ("x",))

    def abstract(shape: tuple[int, int], dtype: str, *axes: str | None) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype), sharding=sharding)

    table = abstract((151_936, 1024), "float32", None, "x")
    tokens = abstract((16, 4096), "int32", "x")

    def loss(table: jax.Array, tokens: jax.Array) -> jax.Array:
        return jnp.tanh(table.astype(jnp.bfloat16)[tokens].astype(jnp.float32)).sum()

    lowered = jax.jit(jax.grad(loss)).lower(table, tokens)
    result = estimate(lowered, topology, mesh.shape, {"parameters": table}, {})
    assert result.fits
    assert result.seconds["forward"] > 0
    assert result.seconds["backward"] > 0
    assert result.hbm_bytes["parameters"] == 151_936 * 1024
