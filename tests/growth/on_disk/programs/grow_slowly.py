"""Grows a checkpoint four times deeper, pausing after every layer; prints a line for each."""

import sys
import time

from prts_jax.growth.operators import make_map
from tests.checkpoint.tiny import MODEL
from tests.growth.on_disk import growing


def pause(done: int, total: int) -> None:
    print(done, total, flush=True)
    time.sleep(0.2)


growing.stream(sys.argv[1], sys.argv[2], make_map(MODEL, None, "stack", 4, ""), progress=pause)
