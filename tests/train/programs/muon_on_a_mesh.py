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

LAYERS, EMBED, HEADS, HEAD_DIM = 3, 16, 4, 8
QUERY = Declaration(
    (LAYERS, EMBED, HEADS, HEAD_DIM),
    "float32",
    ("layers", "embed", "heads", "head_dim"),
    ("embed",),
    "linear",
    Kind.QUERY,
)
OUTPUT = Declaration(
    (LAYERS, HEADS, HEAD_DIM, EMBED),
    "float32",
    ("layers", "heads", "head_dim", "embed"),
    ("heads", "head_dim"),
    "linear",
    Kind.OUTPUT,
)
DECLARATIONS = {"o": OUTPUT, "q": QUERY}


def main() -> None:
    """Runs the comparison."""
    rng = np.random.default_rng(0)
    stacks = {
        path: jnp.asarray(rng.standard_normal(d.shape), jnp.float32)
        for path, d in DECLARATIONS.items()
    }
    alone = orthogonalize(stacks, DECLARATIONS, "float32")
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    by_axes = {path: sharding(mesh, d.axes) for path, d in DECLARATIONS.items()}
    with jax.set_mesh(mesh):
        sharded = jax.device_put(stacks, by_axes)
        step = jax.jit(lambda x: orthogonalize(x, DECLARATIONS, "float32"))
        program = step.lower(sharded).compile()
        result = program(sharded)
    for path in DECLARATIONS:
        np.testing.assert_allclose(
            np.asarray(result[path]), np.asarray(alone[path]), rtol=1e-4, atol=1e-5
        )
        assert result[path].sharding.is_equivalent_to(by_axes[path], result[path].ndim)
    gathered = re.findall(r"f32\[([\d,]+)\]\S* (?:all-gather|all-to-all)\(", program.as_text())
    sizes = [np.prod([int(n) for n in shape.split(",")]) for shape in gathered]
    # Both stacks are exchanged together: six matrices, padded to eight, one for each device.
    assert max(sizes) <= EMBED * HEADS * HEAD_DIM, gathered
    assert 1 <= len(gathered) <= 5, gathered
    print("equal")


main()
