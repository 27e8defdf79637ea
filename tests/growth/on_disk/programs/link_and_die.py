"""Grows a checkpoint by reference and is killed right after one of the stages named."""

import os
import signal
import sys
from typing import Any

from prts_jax.growth.on_disk import reference
from prts_jax.growth.operators import make_map
from tests.checkpoint.tiny import MODEL
from tests.growth.on_disk import growing

source, target, stage = sys.argv[1:]
whole = getattr(reference, stage)


def last(*arguments: Any) -> None:
    whole(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)


setattr(reference, stage, last)
growing.link(source, target, make_map(MODEL, None, "stack", 2, ""))
