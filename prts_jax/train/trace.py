"""The batch of a past step of a run: its store, read order and position.

The position comes from the run's own records, because growth, learned maps and changes on resume
move it: the lines of metrics and the lineages of checkpoints state it after their step, and a step
takes batch × length tokens.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.several import open_stores, short_fingerprint
from prts_jax.checkpoint import layout
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.records import ChangeRecord
from prts_jax.config import RunConfig, from_dict, stage_configs
from prts_jax.errors import UserError, first_line, storage_errors
from prts_jax.paths import as_path
from prts_jax.train.data_position import with_old_order
from prts_jax.train.metrics import read_metrics
from prts_jax.train.stages import stage_file


@dataclass(frozen=True, order=True)
class Mark:
    """A record of a run's position after a step of a stage."""

    step: int
    stage: int
    stage_step: int
    position: int


@dataclass(frozen=True)
class StepBatch:
    """The batch of one step of a run.

    Attributes:
      step: the step, counted as in metrics.jsonl, whose line of this step includes this batch.
      stage: index of its stage.
      position: tokens consumed before it.
      batches: batches of the stage.
    """

    step: int
    stage: int
    position: int
    batches: TrainBatches


def batch_of_step(workdir: str, step: int, train: str = "") -> StepBatch:
    """Returns the batch on which a run trained, or would train, at a step.

    Args:
      workdir: directory of the run.
      step: step of the lineage; the first of a fresh run is 1.
      train: the training store, or stores with shares, if they have moved; "" for those that the
        config names.

    Raises:
      UserError: no run, a step that is not this run's, records that contradict one another, or a
        store that the run did not train on.
    """
    config = _read_config(workdir, "config.json")
    if config is None:
        raise UserError(f"{workdir}: has no config.json; name the workdir of a `prts train`")
    lineages = _lineages(workdir)
    marks = sorted({*_line_marks(workdir), *map(_mark_of, lineages), *_fresh(config)})
    mark = _nearest(marks, step, workdir)
    stage = _stage_config(workdir, config, lineages, mark.stage)
    _check_in_stage(mark, step, stage.train.steps, workdir)
    later = next((lineage for lineage in lineages if lineage.step >= step), None)
    changes = (later or lineages[-1]).changes if lineages else ()
    data = _data_at(stage, changes, step)
    taken = data["batch"] * data["length"]
    position = mark.position + (step - 1 - mark.step) * taken
    # A change of the data on resume begins a new epoch.
    moved = max(
        (c.step for c in changes if c.step < step and c.key.startswith("data.")), default=-1
    )
    before = [m for m in marks if moved < m.step < step and m.stage == mark.stage]
    if position < 0 or (
        before and before[-1].position + (step - 1 - before[-1].step) * taken != position
    ):
        raise UserError(
            f"--step={step}: between the records of {workdir} around this step the position does "
            f"not advance by batch × length = {taken:,} tokens a step; give a step of another part"
        )
    train = train or data["train"]
    batches = train_batches(open_stores(train), ReadOrder.of(data))
    trained_on = _store_at(later, step) if later else ""
    if trained_on not in ("", batches.store.fingerprint):
        raise UserError(
            f"{train}: is not what {workdir} trained on at step {step} (fingerprint "
            f"{short_fingerprint(batches.store.fingerprint)}, not {short_fingerprint(trained_on)})"
            "; name that as STORE"
        )
    return StepBatch(step, mark.stage, position, batches)


def _read_config(workdir: str, name: str) -> dict[str, Any] | None:
    path = as_path(workdir) / name
    try:
        with storage_errors(f"cannot read {path}"):
            values = json.loads(path.read_bytes()) if path.exists() else None
        if values is None:
            return None
        from_dict(RunConfig, values)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is damaged ({first_line(error)}); restore it") from error
    return dict(values)


def _lineages(workdir: str) -> list[Lineage]:
    """Returns the lineages of the complete checkpoints by rising step."""
    folder = str(as_path(workdir) / layout.CHECKPOINTS)
    return [
        layout.read_lineage(f"{folder}/{step}") for step in sorted(layout.complete_steps(folder))
    ]


def _line_marks(workdir: str) -> Iterator[Mark]:
    for line in read_metrics(workdir):
        for record in (line.get("previous_stage"), line):
            if isinstance(record, Mapping):
                record = {"stage": 0, **record}
                values = {field.name: record.get(field.name) for field in dataclasses.fields(Mark)}
                if all(type(value) is int for value in values.values()):
                    yield from_dict(Mark, values)


def _mark_of(lineage: Lineage) -> Mark:
    return Mark(lineage.step, lineage.stage, lineage.stage_step, lineage.position)


def _fresh(config: Mapping[str, Any]) -> list[Mark]:
    """Returns the start of a run that begins with fresh parameters; it has no line of its own."""
    init = config.get("init", {})
    return [] if init.get("grow_from") or init.get("start_from") else [Mark(0, 0, 0, 0)]


def _nearest(marks: Sequence[Mark], step: int, workdir: str) -> Mark:
    """Returns the first record that includes the step, or the last one before it."""
    if not marks:
        raise UserError(f"{workdir}: has no record of a step yet; start again when it has")
    first = marks[0].step - marks[0].stage_step + 1
    if step < first:
        before = "; earlier ones are of the run that it started from" if first > 1 else ""
        raise UserError(f"--step={step}: the first step of {workdir} is {first}{before}")
    return next((mark for mark in marks if mark.step >= step), marks[-1])


def _stage_config(
    workdir: str, config: dict[str, Any], lineages: Sequence[Lineage], stage: int
) -> RunConfig:
    """Returns the config of a stage; older versions kept it in the stage's checkpoints alone."""
    run = from_dict(RunConfig, config)
    count = max(len(run.growth.stages), 1)
    if stage >= count:
        raise UserError(
            f"config.json has {count} stages and the run's records are of stage {stage + 1}; "
            "restore it"
        )
    own = _read_config(workdir, stage_file(stage)) if count > 1 else config
    own = own or next((line.config for line in lineages[::-1] if line.stage == stage), None)
    if own is None:
        return stage_configs(run)[stage]
    return from_dict(RunConfig, {**own, "data": with_old_order(own["data"])})


def _check_in_stage(mark: Mark, step: int, steps: int, workdir: str) -> None:
    first = mark.step - mark.stage_step + 1
    if step < first:
        raise UserError(
            f"--step={step}: {workdir} has no record of the stage before step {first}: its metrics "
            "are lost"
        )
    if step > (last := max(first + steps - 1, mark.step)):
        raise UserError(f"--step={step}: the last step of {workdir} is {last}")


def _data_at(stage: RunConfig, changes: Sequence[ChangeRecord], step: int) -> dict[str, Any]:
    """Returns `config.data` as it was at a step: later changes are taken back."""
    data = dataclasses.asdict(stage.data)
    for change in reversed(changes):
        section, _, key = change.key.partition(".")
        if change.step >= step and section == "data" and key in data:
            data[key] = change.from_
    return data


def _store_at(lineage: Lineage, step: int) -> str:
    """Returns the fingerprint of the store at a step, from a later lineage."""
    store = lineage.store
    for change in reversed(lineage.changes):
        if change.step >= step and change.key == "data.store":
            store = str(change.from_)
    return store
