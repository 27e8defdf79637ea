"""The batch of a past step equals the one that the run trained on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipelines.batches.loader import TrainBatches
from prts_jax.config import RunConfig
from prts_jax.errors import UserError
from prts_jax.train.loop import train
from prts_jax.train.trace import batch_of_step
from tests.train.conftest import BaseRun

Configure = Callable[..., RunConfig]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> dict[int, np.ndarray]:
    """Position → tokens of the global batches that are read, in the order of reading."""
    batches: dict[int, np.ndarray] = {}
    rows = TrainBatches.rows

    def record(self: TrainBatches, position: int, start: int, stop: int) -> Any:
        batch = rows(self, position, start, stop)
        batches[position] = batch["tokens"]
        return batch

    monkeypatch.setattr(TrainBatches, "rows", record)
    return batches


def check(workdir: Path, steps: range, read: dict[int, np.ndarray], train: str = "") -> None:
    for step, position in zip(steps, list(read), strict=False):
        traced = batch_of_step(str(workdir), step, train)
        assert traced.position == position, f"step {step}"
        order = traced.batches.order
        starts = traced.batches.starts(order.consumed(position, 0, order.batch))
        rows = [store.read(start, order.length) for store, start in starts]
        np.testing.assert_array_equal(np.stack(rows), read[position], err_msg=f"step {step}")


@pytest.mark.slow
def test_every_step_of_a_run_that_grows_and_changes_its_length(
    configure: Configure, read: dict[int, np.ndarray], tmp_path: Path
):
    stages = (
        {"steps": 3, "model": {"layers": 1}},
        {"steps": 3, "data": {"batch": 4, "length": 8}},
    )
    config = configure(growth__stages=stages, data__block=32, logging__every_steps=2)
    train(config, str(tmp_path))
    check(tmp_path, range(1, 7), read)
    with pytest.raises(UserError, match=r"the last step of .* is 6"):
        batch_of_step(str(tmp_path), 7)
    with pytest.raises(UserError, match=r"the first step of .* is 1"):
        batch_of_step(str(tmp_path), 0)

    # The step of a loss that is not finite has no line and no checkpoint.
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_text("".join(lines[:-1]))
    for folder in (tmp_path / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    assert batch_of_step(str(tmp_path), 6).position == list(read)[5]


@pytest.mark.slow
def test_steps_before_and_after_a_change_on_resume(
    configure: Configure, read: dict[int, np.ndarray], tmp_path: Path
):
    train(configure(train__steps=3, logging__every_steps=10), str(tmp_path))
    before = {position: read[position] for position in list(read)[:3]}
    read.clear()
    changed = configure(train__steps=6, data__batch=4, data__seed=1, logging__every_steps=10)
    train(changed, str(tmp_path), ("data.batch", "data.seed"))
    check(tmp_path, range(4, 7), read)
    check(tmp_path, range(1, 4), before)


def test_a_run_from_a_checkpoint_begins_with_its_own_steps(
    configure: Configure, base: BaseRun, read: dict[int, np.ndarray], tmp_path: Path
):
    start = str(base.workdir)
    config = configure(train__steps=3, init__start_from=start, logging__every_steps=10)
    train(config, str(tmp_path / "run"))
    check(tmp_path / "run", range(7, 10), read)
    with pytest.raises(UserError, match="earlier ones are of the run that it started from"):
        batch_of_step(str(tmp_path / "run"), 6)
    with pytest.raises(UserError, match=r"is not what .* trained on at step 8"):
        batch_of_step(str(tmp_path / "run"), 8, config.data.validation)
    with pytest.raises(UserError, match=r"has no config\.json"):
        batch_of_step(str(tmp_path), 1)
