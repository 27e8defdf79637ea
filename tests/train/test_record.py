"""The recorder's treatment of steps without a finite loss or gradient."""

import math
import time

import jax
import numpy as np
import pytest

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.errors import DivergedError
from prts_jax.train.record import Recorder
from prts_jax.train.step import StepMetrics
from tests.checkpoint.tiny import lineage_of


class Sink:
    """Takes lines and messages; stands for the log and the terminal."""

    def __init__(self) -> None:
        self.kept, self.lines, self.said = [], [], []

    def write(self, line: dict) -> None:
        self.lines.append(line)

    def say(self, text: str) -> None:
        self.said.append(text)

    def show(self, step: int, line: dict, seconds: float) -> None:
        pass


def metrics(
    loss: float, norm: float = 1.0, deviations: float = 0.0, skip: bool = False
) -> StepMetrics:
    values = (loss, 8.0, norm, 0.1, 1e-3)
    skipped = np.bool_(skip or not math.isfinite(loss) or not math.isfinite(norm))
    sums = (np.array([8 * loss]), np.array([8.0]))
    return StepMetrics(
        *map(np.float32, values), *sums, skipped=skipped, deviations=np.float32(deviations)
    )


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def lineage() -> Lineage:
    return lineage_of({}, declarations={}, step=0)


def recorder(sink: Sink, lineage: Lineage, max_skipped: int = 10, spikes: float = 0.0) -> Recorder:
    devices = np.array(jax.devices()[:1])
    return Recorder(sink, sink, devices, 1, lineage, ("text",), max_skipped, spikes)


def test_skipped_steps_are_named_counted_and_left_out_of_the_means(sink, lineage):
    record = recorder(sink, lineage)
    for position, loss in ((0, 2.0), (128, math.nan), (256, 4.0)):
        record.dispatched(metrics(loss), position)
    record.line_due(lineage)
    record.settle({})
    (line,) = sink.lines
    assert (line["loss"], line["loss/text"]) == (3.0, 3.0)
    assert (line["skipped"], line["skipped_positions"]) == (1, [128])
    assert sink.said == ["step 2: loss is nan, gradient norm 1; skipped, batch at position 128"]
    record.dispatched(metrics(1.0, norm=math.inf), 384)
    record.line_due(lineage)
    record.settle({})
    assert "loss" not in sink.lines[1]
    assert sink.lines[1]["skipped_positions"] == [384]


def test_a_loss_spike_is_named_with_step_and_position_and_counts_in_the_means(sink, lineage):
    record = recorder(sink, lineage, spikes=5.0)
    for step, (loss, deviations) in enumerate(((2.0, 4.9), (5.0, 9.0), (2.0, -1.0))):
        record.dispatched(metrics(loss, deviations=deviations), 128 * step)
    record.line_due(lineage)
    record.settle({})
    above = "loss is 5, gradient norm 1, 9.0 deviations above the running loss"
    assert sink.said == [f"step 2: warning: {above}; batch at position 128"]
    assert sink.lines[0]["loss"] == 3.0


def test_a_skipped_spike_is_named_and_counted_with_the_other_skipped_steps(sink, lineage):
    record = recorder(sink, lineage, max_skipped=1)
    record.dispatched(metrics(9.0, deviations=7.0, skip=True), 0)
    record.dispatched(metrics(2.0), 128)
    record.line_due(lineage)
    record.settle({})
    above = "loss is 9, gradient norm 1, 7.0 deviations above the running loss"
    assert sink.said == [f"step 1: {above}; skipped, batch at position 0"]
    assert (sink.lines[0]["loss"], sink.lines[0]["skipped_positions"]) == (2.0, [0])
    record.dispatched(metrics(math.nan), 256)
    with pytest.raises(DivergedError, match=r"at step 3: .*2 steps were skipped"):
        record.settle({})


def test_more_skipped_steps_than_allowed_stop_the_run(sink, lineage):
    record = recorder(sink, lineage, max_skipped=1)
    record.dispatched(metrics(math.inf), 0)
    record.dispatched(metrics(1.0), 128)
    record.dispatched(metrics(math.nan), 256)
    with pytest.raises(DivergedError, match=r"at step 3: .*2 steps .*positions \[0, 256\]"):
        record.settle({})


def test_goodput_counts_the_pauses_between_starts(sink, lineage):
    sink.kept = [
        {"step": 0, "seconds": 0.0, "time": time.time() - 1000},
        {"step": 1, "seconds": 90.0, "time": time.time() - 900, "step_seconds": 80.0}
        | {"starting_seconds": 5.0, "saving_seconds": 2.0},
    ]
    record = recorder(sink, lineage)
    record.begin(time.perf_counter() - 20)
    with record.paused("compiling"):
        time.sleep(0.1)
    record.restart_clock()
    for position in (0, 128):
        record.dispatched(metrics(1.0), position)
        record.line_due(lineage)
        record.settle({})
    first, second = sink.lines
    assert first["goodput"] == pytest.approx(80 / 1000, abs=0.001)
    assert first["step_seconds"] == pytest.approx(80, abs=1)
    assert first["first_step_seconds"] == pytest.approx(20, abs=1)
    assert "first_step_seconds" not in second
    assert first["compiling_seconds"] >= 0.1
    assert first["starting_seconds"] == pytest.approx(25, abs=1)
    assert (first["evaluation_seconds"], second["saving_seconds"]) == (0.0, 2.0)


def test_a_validation_loss_that_is_no_number_stops_the_run(sink, lineage):
    record = recorder(sink, lineage)
    record.line_due(lineage)
    with pytest.raises(DivergedError, match="validation_loss: is nan"):
        record.settle({"validation_loss": math.nan})
    assert sink.lines == []
