"""One of two processes that save together, of which the second cannot write for a while.

Arguments: port of the coordinator, this process's number, directory. Prints one JSON object.
"""

import json
import resource
import sys
import time

import jax
import numpy as np


def main(folder: str) -> None:
    # These look at the devices, which only exist after `initialize`.
    from prts_jax.checkpoint.store import Checkpoints
    from prts_jax.config import MeshConfig
    from prts_jax.errors import StorageError
    from prts_jax.mesh import make_mesh, param_shardings
    from prts_jax.tree import unflatten
    from tests.checkpoint.tiny import DECLARED, lineage_of

    shardings = param_shardings(make_mesh(MeshConfig(fsdp=2)), DECLARED)
    params = unflatten(
        {
            path: jax.make_array_from_callback(
                d.shape, shardings[path], np.zeros(d.shape, np.float32).__getitem__
            )
            for path, d in DECLARED.items()
        }
    )
    checkpoints = Checkpoints(f"{folder}/checkpoints", keep=2, keep_every_steps=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    seconds, errors = [], []
    for step in (1, 2, 2, 3):
        failing = step == 2 and not errors
        if failing and jax.process_index() == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        began = time.monotonic()
        try:
            checkpoints.save(step, params, {"mu": params}, lineage_of(params, step=step))
            while not checkpoints.check():
                time.sleep(0.05)
        except StorageError as error:
            errors.append(str(error))
        seconds.append(time.monotonic() - began)
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    checkpoints.close()
    steps = checkpoints.steps()
    print(json.dumps({"errors": errors, "steps": steps, "seconds": max(seconds)}))


if __name__ == "__main__":
    port, number, folder = sys.argv[1:]
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(number))
    main(folder)
