"""Which checkpoints of a run are kept: by count, by step and by time."""

import dataclasses
import math

from prts_jax.checkpoint.items import saved_at


@dataclasses.dataclass(frozen=True)
class Retention:
    """Rules for the checkpoints of a run.

    Attributes:
      directory: the run's `checkpoints` directory.
      keep: number of newest checkpoints to keep.
      every_steps: checkpoints at multiples of this step are kept; 0: none.
      every_seconds: the first checkpoint, and those saved so long after the last one kept for this
        reason, are kept; 0.0: none.
    """

    directory: str
    keep: int
    every_steps: int
    every_seconds: float
    _saved_at: dict[int, float] = dataclasses.field(default_factory=dict)

    def dropped(self, steps: list[int], protected: set[int]) -> list[int]:
        """Returns those of the steps, oldest first, whose checkpoints may be removed."""
        every = self.every_steps
        kept = protected | self._kept_by_time(steps)
        return [
            step
            for step in steps[: -self.keep]
            if step not in kept and not (every and step % every == 0)
        ]

    def _kept_by_time(self, steps: list[int]) -> set[int]:
        kept, since = set[int](), -math.inf
        for step in steps if self.every_seconds else []:
            if step not in self._saved_at:
                self._saved_at[step] = saved_at(f"{self.directory}/{step}")
            if self._saved_at[step] - since >= self.every_seconds:
                kept.add(step)
                since = self._saved_at[step]
        return kept
