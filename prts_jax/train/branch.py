"""Branches: runs that take a trunk's whole state at a stable step and decay to a finished model."""

import dataclasses
import math
import re
from collections.abc import Sequence

from prts_jax.checkpoint.records import BranchRecord
from prts_jax.config import RunConfig, ScheduleConfig, StagesConfig, from_dict, parse_length
from prts_jax.errors import UserError
from prts_jax.paths import as_path
from prts_jax.train.origin import Origin
from prts_jax.train.schedule import goes_on


def branch_config(stages: Sequence[RunConfig], origin: Origin) -> RunConfig:
    """Returns the config of a branch: the trunk's stage, which decays from the origin's step.

    The schedule is wsd whose decay begins at the origin and takes `schedule.decay`; a share is one
    of all steps up to the decay's end. The run ends with the decay.

    Args:
      stages: configs of the stages of the run that the user gave.
      origin: the trunk's checkpoint, or on resume the branch's own.

    Raises:
      UserError: the trunk is not in its stable phase there, or has a stage that the config lacks;
        or the workdir holds another run than this branch.
    """
    lineage = origin.lineage
    if origin.own:
        record = _own_record(stages[0].init.branch_from, origin)
    else:
        record = lineage.branched(origin.path).branches[-1]
        trunk = from_dict(ScheduleConfig, lineage.config["schedule"], "schedule")
        _refuse_unstable(trunk, record)
    if record.stage >= len(stages):
        raise UserError(
            f"config.init.branch_from: {record.trunk} is of stage {record.stage + 1}, and the "
            f"config has {len(stages)}; give the stages of the trunk"
        )
    config = goes_on(stages[record.stage], lineage)
    begin = _counted(config.schedule, record)
    steps = _steps(config, begin)
    schedule = dataclasses.replace(
        config.schedule, kind="wsd", decay_start=begin, decay_end=begin + steps
    )
    train = dataclasses.replace(config.train, steps=record.stage_step + steps)
    return dataclasses.replace(config, schedule=schedule, train=train, growth=StagesConfig())


def _own_record(named: str, origin: Origin) -> BranchRecord:
    """Returns the branch that a run's own checkpoint belongs to; it must leave the named step."""
    lineage = origin.lineage
    began = lineage.step - lineage.stage_step
    record = next((r for r in lineage.branches[::-1] if r.step - r.stage_step == began), None)
    step = re.search(r"(?:@|/checkpoints/)([0-9]+)/*$", named)
    if record is None or (step and int(step[1]) != record.step):
        held = f"a branch from step {record.step:,}" if record else "a run that is no branch"
        workdir = as_path(origin.path).parent.parent
        raise UserError(f"--workdir={workdir}: holds {held}; give {named} a workdir of its own")
    return record


def _counted(schedule: ScheduleConfig, record: BranchRecord) -> int:
    """Returns the branch's step in the schedule's own count."""
    return record.stage_step if schedule.after_growth == "restart" else record.step


def _steps(config: RunConfig, begin: int) -> int:
    number, unit = parse_length(config.schedule.decay, "schedule.decay")
    if unit == "%":
        number = begin * number / max(100 - number, 1e-9)
    elif unit == "tokens":
        number /= config.data.batch * config.data.length
    steps = math.ceil(number - 1e-9)
    if not 1 <= steps < 2**31:
        raise UserError(
            f"config.schedule.decay: {config.schedule.decay!r} is no length of a branch at step "
            f"{begin:,}; give at least one step, and less than 100%"
        )
    return steps


def _refuse_unstable(trunk: ScheduleConfig, record: BranchRecord) -> None:
    """Refuses a trunk whose rate is not constant at the branch."""
    at = _counted(trunk, record)
    warm = record.step if trunk.after_growth == "keep" else record.stage_step
    if trunk.kind == "cosine" or (trunk.kind == "wsd" and at > trunk.decay_start):
        began = trunk.warmup_steps if trunk.kind == "cosine" else trunk.decay_start
        raise UserError(
            f"config.init.branch_from: the learning rate of {record.trunk} decays since step "
            f"{began:,}; branch from a checkpoint before it, of a run with a stable phase "
            "(schedule.kind 'constant' or 'wsd')"
        )
    if warm < trunk.warmup_steps:
        raise UserError(
            f"config.init.branch_from: {record.trunk} is in its warm-up, which takes "
            f"{trunk.warmup_steps:,} steps; branch from a later checkpoint"
        )
