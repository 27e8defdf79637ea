"""A start of `prts train`: what all stages of its run share."""

import dataclasses
from collections.abc import Callable, Collection

from prts_jax.train.heartbeat import Heartbeat
from prts_jax.train.profile import Profiler
from prts_jax.train.stopping import Stopping


@dataclasses.dataclass(frozen=True)
class Job:
    """A start of `prts train`.

    Attributes:
      workdir: of the run, shared by all processes.
      allow_change: config keys that may differ from the checkpoint's.
      stopping: tells after each step whether to stop.
      check_lock: raises an error if another process has taken over the workdir's lock.
      heartbeat: takes the figures of this process.
      profiler: profiles steps on request.
    """

    workdir: str
    allow_change: Collection[str]
    stopping: Stopping
    check_lock: Callable[[], None]
    heartbeat: Heartbeat
    profiler: Profiler
