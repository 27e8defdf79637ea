"""Saves one checkpoint, then another with hardly any room; prints the error it gets."""

import resource
import sys

from prts_jax.checkpoint.store import Checkpoints
from prts_jax.errors import StorageError
from tests.checkpoint.tiny import lineage_of, random_params

params = random_params()
checkpoints = Checkpoints(sys.argv[1], keep=2, keep_every_steps=0)
checkpoints.save(1, params, None, lineage_of(params, step=1))
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    checkpoints.save(2, params, None, lineage_of(params, step=2))
    checkpoints.wait()
except StorageError as error:
    print(error)
