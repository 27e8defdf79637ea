"""Share of a run's wall time in training steps, the rest by kind, and each start, over restarts."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from prts_jax.report.runs import Run, is_finite
from prts_jax.train.metrics import OUTSIDE_STEPS

DEFINITION = (
    "Wall time: the share of training steps is the goodput; starting is restoring, initialising "
    "and growing; saving counts as far as steps wait for it; other is the time between starts, of "
    "the processes' start-up and in steps that were lost. First step: median and longest time from "
    "a start or a new stage to the end of its first step."
)


@dataclasses.dataclass(frozen=True)
class Goodput:
    """Wall time of a run until its newest line; times in seconds.

    Attributes:
      in_steps: in training steps that are part of the run.
      outside: by kind of `OUTSIDE_STEPS`; empty if an older version wrote the metrics.
      starts: for each start and each stage, the step of its first line with a training step, and
        the time from the start to the end of the first step.
    """

    wall: float
    in_steps: float
    outside: Mapping[str, float]
    starts: Sequence[tuple[int, float]]

    @property
    def other(self) -> float | None:
        """Time between starts, of start-up and in steps that were lost; None: unknown."""
        known = self.in_steps + sum(self.outside.values())
        return max(0.0, self.wall - known) if self.outside else None

    def to_json(self) -> dict[str, Any]:
        """Returns all figures, with the share in steps."""
        return {
            "share": self.in_steps / self.wall,
            "wall_seconds": self.wall,
            "step_seconds": self.in_steps,
            **{f"{work}_seconds": self.outside.get(work) for work in OUTSIDE_STEPS},
            "other_seconds": self.other,
            "starts": [{"step": step, "seconds": seconds} for step, seconds in self.starts],
        }


def goodput(run: Run) -> Goodput | None:
    """Returns the wall time of a run; None if its metrics do not have it."""
    timed = [row for row in run.rows if is_finite(row.get("time"))]
    if not timed or not is_finite(timed[0].get("seconds")):
        return None
    first, last = timed[0], timed[-1]
    started: Any = first.get("started", first["time"] - first["seconds"])
    wall = last["time"] - started if is_finite(started) else 0.0
    in_steps: Any = last.get("step_seconds")
    if wall <= 0 or not is_finite(in_steps):
        return None
    outside: dict[str, Any] = {work: last.get(f"{work}_seconds") for work in OUTSIDE_STEPS}
    starts = [
        (row["step"], row["first_step_seconds"])
        for row in run.rows
        if is_finite(row.get("first_step_seconds"))
    ]
    known = all(map(is_finite, outside.values()))
    return Goodput(wall, min(in_steps, wall), outside if known else {}, starts)
