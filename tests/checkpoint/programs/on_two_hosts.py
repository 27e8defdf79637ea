"""One of two processes that save, drop and restore checkpoints together.

Arguments: port of the coordinator, this process's number, directory. Prints one JSON object.
"""

import json
import sys

import jax
import numpy as np


def main(folder: str) -> None:
    # These look at the devices, which only exist after `initialize`.
    from prts_jax.checkpoint.digests import digest_of, digests
    from prts_jax.checkpoint.restore import restore_optimizer, restore_params
    from prts_jax.checkpoint.store import Checkpoints
    from prts_jax.config import MeshConfig
    from prts_jax.mesh import make_mesh, param_shardings
    from prts_jax.tree import flatten, unflatten
    from tests.checkpoint.tiny import DECLARED, abstract, lineage_of

    shardings = param_shardings(make_mesh(MeshConfig(fsdp=8)), DECLARED)
    rng = np.random.default_rng(0)
    values = {path: rng.normal(size=d.shape).astype(np.float32) for path, d in DECLARED.items()}
    params = unflatten(
        {
            path: jax.make_array_from_callback(value.shape, shardings[path], value.__getitem__)
            for path, value in values.items()
        }
    )
    actual = digests(params, DECLARED)
    expected = {
        path: tuple(map(digest_of, value if DECLARED[path].stacked else value[None]))
        for path, value in values.items()
    }
    checkpoints = Checkpoints(f"{folder}/checkpoints", keep=2, keep_every_steps=0)
    for step in (1, 2, 3):
        checkpoints.save(step, params, {"mu": params}, lineage_of(params, step=step))
    checkpoints.close()
    path = checkpoints.path(3)
    restored = restore_params(path, abstract(params), DECLARED)
    moments = restore_optimizer(path, abstract({"mu": params}))["mu"]
    same = all(
        np.array_equal(np.asarray(shard.data), values[name][shard.index])
        for tree in (restored, moments)
        for name, leaf in flatten(tree).items()
        for shard in leaf.addressable_shards
    )
    print(
        json.dumps(
            {"digests": actual == expected, "restored exactly": same, "steps": checkpoints.steps()}
        )
    )


if __name__ == "__main__":
    port, number, folder = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number))
    main(folder)
