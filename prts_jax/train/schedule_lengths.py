"""Lengths of a schedule in steps, tokens or shares of a run, resolved into steps."""

import dataclasses
import math

from prts_jax.config import ScheduleConfig, check_schedule, parse_length
from prts_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Span:
    """The steps of a stage in its lineage.

    Attributes:
      first: step of the lineage at which the stage begins.
      steps: of the stage.
      last: step of the lineage at which the run's last stage ends.
      tokens: of the lineage at `first`.
      tokens_per_step: in the stage.
    """

    first: int
    steps: int
    last: int
    tokens: int
    tokens_per_step: int

    def counted(self, after_growth: str) -> int:
        """Returns the last step in the schedule's own count: of the stage, or of the lineage."""
        return self.steps if after_growth == "restart" else self.last

    def in_steps(self, text: str, after_growth: str) -> int:
        """Returns a length in steps of the schedule's own count, at least 0.

        A share is one of `counted`. Tokens of a lineage are those trained on since its first step;
        before `first` their steps are taken as equally long.
        """
        number, unit = parse_length(text)
        if unit == "steps":
            return math.ceil(number)
        if unit == "%":
            return round(self.counted(after_growth) * number / 100)
        if after_growth == "restart" or not self.tokens:
            return math.ceil(number / self.tokens_per_step)
        if number <= self.tokens:
            return math.ceil(self.first * number / self.tokens)
        return self.first + math.ceil((number - self.tokens) / self.tokens_per_step)


def resolve(schedule: ScheduleConfig, span: Span) -> ScheduleConfig:
    """Returns the schedule with `warmup` and `decay` written into the keys that count steps.

    `decay` is the length of wsd's decay, which ends with the run, and the step at which cosine's
    decay ends.

    Raises:
      UserError: the decay would begin before the warm-up ends.
    """
    count = schedule.after_growth
    if schedule.warmup:
        # The warm-up of "rewarm" counts from the growth.
        steps = span.in_steps(schedule.warmup, "restart" if count == "rewarm" else count)
        schedule = dataclasses.replace(schedule, warmup_steps=steps)
    if not schedule.decay or schedule.kind == "constant":
        check_schedule(schedule)
        return schedule
    end = span.counted(count)
    if schedule.kind == "cosine":
        schedule = dataclasses.replace(schedule, decay_end=span.in_steps(schedule.decay, count))
        check_schedule(schedule)
        return schedule
    length = decay_steps(schedule.decay, end, span.tokens_per_step)
    if not 0 < length <= end - schedule.warmup_steps:
        raise UserError(
            f"config.schedule.decay: {schedule.decay!r} is {length} of {end} steps, of which "
            f"{schedule.warmup_steps} warm up; give a shorter decay of at least one step"
        )
    return dataclasses.replace(schedule, decay_start=end - length, decay_end=end)


def decay_steps(text: str, end: int, tokens_per_step: int) -> int:
    """Returns the steps of a decay that ends at step `end`; a share is at least one step."""
    number, unit = parse_length(text)
    if unit == "%":
        return max(round(end * number / 100), 1) if number else 0
    return math.ceil(number if unit == "steps" else number / tokens_per_step)
