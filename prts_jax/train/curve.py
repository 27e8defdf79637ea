"""The learning rate of a stage in words, in a drawing, and what it cannot do."""

import numpy as np

from prts_jax.config import RunConfig, ScheduleConfig
from prts_jax.train.origin import find_origin
from prts_jax.train.schedule import learning_rate
from prts_jax.train.schedule_lengths import Span
from prts_jax.train.stages import remaining_stages

ROWS, COLUMNS = 10, 64


def drawing(config: RunConfig, workdir: str) -> str:
    """Returns the curves of a run's remaining stages, drawn and in words, with what they cannot do.

    Args:
      config: config of the run.
      workdir: directory of the run; its newest checkpoint says which stages remain.

    Raises:
      UserError: as `remaining_stages`.
    """
    lines = []
    for stage in remaining_stages(config, find_origin(config, workdir)):
        schedule, grows = stage.config.schedule, stage.growth_map is not None
        lines += [stage.name] if stage.name else []
        lines += [*draw(schedule, stage.span), describe(schedule, stage.span)]
        lines += [f"warning: {line}" for line in warnings(schedule, stage.span, grows)]
    return "\n".join(lines)


def describe(schedule: ScheduleConfig, span: Span) -> str:
    """Returns the curve in a line: the rates where it bends, by steps of the lineage."""
    first, stop = span.first, span.first + span.steps
    offset = first if schedule.after_growth == "restart" else 0
    warm = 0 if schedule.after_growth == "keep" else first
    bends = {first, warm + max(schedule.warmup_steps - 1, 0), stop - 1}
    if schedule.kind == "wsd":
        bends |= {offset + schedule.decay_start, offset + schedule.decay_end}
    elif schedule.kind == "cosine":
        bends.add(offset + schedule.decay_end)
    at = sorted(step for step in bends if first <= step < stop)
    rates = [float(learning_rate(schedule, step - first, first)) for step in at]
    shown = ", ".join(f"{rate:.3g} at {step:,}" for rate, step in zip(rates, at, strict=True))
    return f"learning rate ({schedule.kind}) by step: {shown}; the stage ends at {stop:,}"


def warnings(schedule: ScheduleConfig, span: Span, grows: bool) -> list[str]:
    """Returns what the schedule cannot do in a run, a line each.

    Args:
      schedule: with its lengths in steps.
      span: of the stage.
      grows: whether the stage begins with a growth.
    """
    end, lines = span.counted(schedule.after_growth), []
    offset = 0 if schedule.after_growth == "restart" else span.first
    warm_end = span.steps if schedule.after_growth == "rewarm" else end
    if schedule.warmup_steps > warm_end:
        lines.append(
            f"schedule.warmup_steps: the warm-up takes {schedule.warmup_steps:,} steps and the run "
            f"ends at step {warm_end:,}, so the rate never reaches its peak; shorten it, for "
            "example schedule.warmup='2%'"
        )
    if schedule.kind == "constant":
        return lines
    begins = schedule.warmup_steps if schedule.kind == "cosine" else schedule.decay_start
    if schedule.decay_end > end:
        rate = float(learning_rate(schedule, end - 1 - offset, offset))
        lines.append(
            f"schedule.decay_end: the run ends at step {end:,} and the decay at step "
            f"{schedule.decay_end:,}, so the last rate is {rate:.3g}; to finish the decay set "
            f"schedule.decay, for example '{'100%' if schedule.kind == 'cosine' else '10%'}'"
        )
    if grows and schedule.after_growth != "restart" and begins < span.first:
        lines.append(
            f"schedule: the decay began at step {begins:,}, before the growth at step "
            f"{span.first:,}, and it goes on through the growth; grow earlier, decay later, or set "
            "schedule.after_growth='restart'"
        )
    return lines


def draw(schedule: ScheduleConfig, span: Span) -> list[str]:
    """Returns the curve as lines of text, the rate upwards, steps of the lineage to the right."""
    columns = min(COLUMNS, span.steps)
    steps = np.linspace(0, span.steps - 1, columns).round().astype(int)
    rates = [float(learning_rate(schedule, int(step), span.first)) for step in steps]
    top = max(*rates, 1e-30)
    heights = [rate / top * ROWS for rate in rates]
    lines = []
    for row in reversed(range(ROWS)):
        cells = ["█" if h >= row + 1 else "▄" if h >= row + 0.5 else " " for h in heights]
        label = f"{top * (row + 1) / ROWS:9.3g}" if row in (0, ROWS - 1) else " " * 9
        lines.append(f"{label} {''.join(cells)}".rstrip())
    ends = f"{span.first:,}", f"{span.first + span.steps:,}"
    return [*lines, f"{' ' * 9} {ends[0]}{ends[1]:>{max(columns - len(ends[0]), 1)}}"]
