"""Grows a checkpoint on a mesh that does not divide the source's heads, and on one device.

Usage: grow_on_an_uneven_mesh.py CHECKPOINT. Asserts that parameters and moments are equal in every
bit.
"""

import dataclasses
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from prts_jax.checkpoint.layout import read_lineage
from prts_jax.config import to_dict
from prts_jax.growth.operators import make_map
from prts_jax.mesh import make_mesh
from prts_jax.train.ancestor import grow_from
from prts_jax.train.learn import Learned
from prts_jax.train.optim import make_optimizer
from prts_jax.train.origin import Origin
from prts_jax.tree import named_leaves
from tests.train import tiny


def grown(checkpoint: str, mesh: Mesh) -> dict[str, jax.Array]:
    """Returns the leaves of parameters and optimizer state, grown in width and depth."""
    origin = Origin(checkpoint, read_lineage(checkpoint), own=False)
    model = dataclasses.replace(tiny.MODEL, layers=4, embed=64, heads=8, kv_heads=4)
    config = tiny.run_config(
        model=model, init__growth__operator="split", init__growth__optimizer="copy"
    )
    optimizer = make_optimizer(config)
    with jax.set_mesh(mesh):
        growth_map = make_map(origin.lineage.model, model, **to_dict(config.init.growth))
        start = grow_from(config, growth_map, origin, mesh, optimizer, not_learned)
    return named_leaves(start.state)


def not_learned(growth_map, _, source) -> Learned:
    return Learned(growth_map, source, {})


def main() -> None:
    """Compares the growth on four devices with that on one."""
    whole = make_mesh(tiny.run_config(mesh__fsdp=1, mesh__tensor=4).mesh)
    assert tiny.MODEL.kv_heads % whole.shape["tensor"]
    single = Mesh(whole.devices.ravel()[:1].reshape(1, 1, 1, 1), whole.axis_names, whole.axis_types)
    sharded, alone = (grown(sys.argv[1], mesh) for mesh in (whole, single))
    assert sharded.keys() == alone.keys()
    for path, leaf in alone.items():
        np.testing.assert_array_equal(np.asarray(sharded[path]), np.asarray(leaf), err_msg=path)
    keys = sharded["params/layers/attention/k"]
    assert not keys.sharding.is_fully_replicated, keys.sharding
    print(f"{len(alone)} leaves are equal")


main()
