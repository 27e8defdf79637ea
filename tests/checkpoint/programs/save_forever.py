"""Saves checkpoints until it is killed, a line each: step n holds `random_params(seed=n)`."""

import sys

from prts_jax.checkpoint.store import Checkpoints
from tests.checkpoint.tiny import lineage_of, random_params

checkpoints = Checkpoints(sys.argv[1], keep=3, keep_every_steps=0)
step = checkpoints.latest() or 0
while True:
    step += 1
    params = random_params(seed=step)
    checkpoints.save(step, params, params, lineage_of(params, step=step))
    print(f"saving {step}; those before are whole", flush=True)
