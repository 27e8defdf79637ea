"""Compares Muon's updates of a sharded stack on eight devices with those on one.

Asserts that they agree to rounding, that the result has the parameter's sharding, and that no
device holds more than its share of the orthogonalised matrices.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.config import MeshConfig
from prts_jax.declaration import Declaration, Kind
from prts_jax.mesh import make_mesh, sharding
from prts_jax.train.muon import orthogonalize

SHAPE = (3, 16, 4, 8)
QUERY = Declaration(
    SHAPE, "float32", ("layers", "embed", "heads", "head_dim"), ("embed",), "linear", Kind.QUERY
)


def main() -> None:
    """Runs the comparison."""
    stack = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
    alone = orthogonalize(stack, QUERY, "float32")
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    by_axes = sharding(mesh, QUERY.axes)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(stack, by_axes)
        program = jax.jit(lambda x: orthogonalize(x, QUERY, "float32")).lower(sharded).compile()
        result = program(sharded)
    np.testing.assert_allclose(np.asarray(result), np.asarray(alone), rtol=1e-4, atol=1e-5)
    assert result.sharding.is_equivalent_to(by_axes, result.ndim), result.sharding
    gathered = re.findall(r"f32\[([\d,]+)\]\S* (?:all-gather|all-to-all)\(", program.as_text())
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in gathered]
    # Three layers, padded to eight: one matrix a device.
    assert sizes and max(sizes) <= np.prod(SHAPE[1:]), gathered
    print("equal")


main()
