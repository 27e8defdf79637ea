"""Recorder: turns the metrics of steps into lines, one step behind the devices."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.records import SkipRecord
from prts_jax.errors import DivergedError
from prts_jax.train.heartbeat import Heartbeat
from prts_jax.train.metrics import OUTSIDE_STEPS, MetricsLog, TerminalLine, peak_flops
from prts_jax.train.step import StepMetrics


class Recorder:
    """Reads the metrics of a step after the next step is dispatched, and writes due lines.

    The loss of a line is the mean over all weighted tokens since the last line. The loss of a
    source is the mean over its tokens, omitted if there were none. A line is written at every
    checkpoint, so a resumed run writes the same lines as an uninterrupted one.

    A skipped step, whose loss or gradient is not finite or whose loss is a spike, has changed
    nothing (`prts_jax.train.step`). It is left out of the means, and its line has the number of
    such steps (`skipped`) and the positions of their batches (`skipped_positions`).

    Attributes:
      skipped: all such steps that were read, those of the lineage before the first step included.
      failed_saves: number of saves that have failed, those before a resume included.
    """

    def __init__(
        self,
        log: MetricsLog | None,
        terminal: TerminalLine,
        devices: np.ndarray,
        flops_per_token: int,
        origin: Lineage,
        sources: Sequence[str] = (),
        max_skipped: int = 0,
        spike_deviations: float = 0.0,
        heartbeat: Heartbeat | None = None,
    ) -> None:
        """Makes a recorder.

        Args:
          log: receives the lines; None on all processes but the first.
          terminal: shows the lines to the user.
          devices: devices of the mesh, for rates per device and MFU.
          flops_per_token: training FLOPs per token, see `prts_jax.model.counts`.
          origin: lineage before the first step.
          sources: names of the sources in the order of `StepMetrics.source_losses`.
          max_skipped: steps of the stage, over all its starts, that may be skipped; one more is an
            error.
          spike_deviations: distance above the running loss from which a loss is warned of; 0.0:
            none is.
          heartbeat: takes this process's figures and has those of the others.
        """
        self._log, self._terminal = log, terminal
        self._devices = devices.size
        self._flops_per_token = flops_per_token
        self._peak = peak_flops(devices.flat[0].device_kind)
        self._unread: StepMetrics | None = None
        self._position = 0  # of the batch of the unread step
        self._max_skipped, self.skipped = max_skipped, origin.skipped
        self._spike_deviations = spike_deviations
        self._heartbeat = heartbeat
        self._waited = 0.0  # for devices, since the last line
        self._first_of_stage = origin.step - origin.stage_step
        self._line_step = origin.step
        self._due: Lineage | None = None
        self._read: list[StepMetrics] = []  # since the last line
        self._sources = sources
        self._by_source = np.zeros((2, len(sources)))  # losses, tokens
        kept = log.kept if log is not None else []
        self.failed_saves: int = kept[-1].get("failed_saves", 0) if kept else 0
        self._seconds_before = kept[-1]["seconds"] if kept else 0.0
        # Wall time since the first start, with the pauses between starts; "started" is newer.
        self._started = time.time() - self._seconds_before
        if kept and "time" in kept[0]:
            self._started = kept[0].get("started", kept[0]["time"] - kept[0]["seconds"])
        self._in_steps = kept[-1].get("step_seconds", 0.0) if kept else 0.0
        self._outside = {
            work: kept[-1].get(f"{work}_seconds", 0.0) if kept else 0.0 for work in OUTSIDE_STEPS
        }
        self._outside_before = sum(self._outside.values())
        self._began: float | None = None
        self._first_step_seconds = 0.0
        self._step, self._last_tokens = origin.step, origin.tokens
        self._clock = self._line_clock = time.perf_counter()

    def begin(self, began: float) -> None:
        """Reports the time to the first step of this start, counted from `began`.

        Args:
          began: `time.perf_counter()` before the stage was restored, grown or initialised.
        """
        self._began = began
        self._started = min(self._started, time.time() - (time.perf_counter() - began))

    def restart_clock(self) -> None:
        """Excludes the time until now from the rates, but not from `seconds`.

        What was neither compilation nor evaluation since the `began` of `begin` counts as starting.
        """
        self._line_clock = time.perf_counter()
        if self._began is not None:
            known = sum(self._outside.values()) - self._outside_before
            self._outside["starting"] += self._line_clock - self._began - known

    @contextlib.contextmanager
    def paused(self, work: str) -> Iterator[None]:
        """Excludes the time inside the context from the rates; it is one of `OUTSIDE_STEPS`."""
        if self._unread is not None:
            # The last dispatched step counts in the rates: the pause begins when it has finished.
            with self._waiting():
                jax.block_until_ready(self._unread)
        began = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - began
            self._line_clock += seconds
            self._outside[work] += seconds

    def count_failed_save(self) -> None:
        """Counts a save that has failed."""
        self.failed_saves += 1

    def dispatched(self, metrics: StepMetrics, position: int) -> None:
        """Keeps the metrics of a dispatched step unread, and reads those of the step before.

        Args:
          metrics: of the step.
          position: of its batch, in tokens of the store.
        """
        self.settle({})
        self._unread, self._position = metrics, position

    def line_due(self, lineage: Lineage) -> None:
        """Requests a line once the last dispatched step has been read."""
        self._due = lineage

    def settle(self, extra: dict[str, Any]) -> None:
        """Reads the last dispatched step and writes its line if one is due.

        Args:
          extra: further keys of the line.

        Raises:
          DivergedError: too many steps were skipped, or a validation loss is not finite. The line
            is not written, and the caller must not save a checkpoint of the step.
        """
        if self._unread is not None:
            with self._waiting():
                metrics: StepMetrics = jax.device_get(self._unread)
            self._unread = None
            if self._began is not None:
                self._first_step_seconds = time.perf_counter() - self._began
                self._began = None
            self._step += 1
            if self._heartbeat is not None:
                self._heartbeat.step(self._step)
            if metrics.skipped:
                self._skip(metrics)
            else:
                self._read.append(metrics)
                self._by_source += (metrics.source_losses, metrics.source_tokens)
                self._warn_of_spike(metrics)
        if self._due is not None:
            for name, value in extra.items():
                if isinstance(value, float) and not np.isfinite(value):
                    raise DivergedError(self._diverged(f"{name}: is {value}"))
            self._write(self._due, extra)
            self._due = None

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    def _warn_of_spike(self, metrics: StepMetrics) -> None:
        limit = self._spike_deviations
        if limit and metrics.deviations is not None and metrics.deviations > limit:
            what, batch = _what(metrics), f"batch at position {self._position}"
            self._terminal.say(f"step {self._step}: warning: {what}; {batch}")

    def _skip(self, metrics: StepMetrics) -> None:
        self.skipped = (*self.skipped, SkipRecord(self._step, self._position))
        what = _what(metrics)
        if len(self._positions(self._first_of_stage)) > self._max_skipped:
            raise DivergedError(self._diverged(what))
        self._terminal.say(
            f"step {self._step}: {what}; skipped, batch at position {self._position}"
        )

    def _positions(self, after: int) -> list[int]:
        """Returns the positions of the batches skipped after a step."""
        return [skip.position for skip in self.skipped if skip.step > after]

    def _diverged(self, what: str) -> str:
        positions = self._positions(self._first_of_stage)
        last = f", the last at positions {positions[-3:]}" if positions else ""
        return (
            f"{what} at step {self._step}: training has diverged ({len(positions)} steps were "
            f"skipped{last}); lower config.schedule.peak or lengthen warmup_steps, see "
            "these batches (`prts data show`), and begin again from a checkpoint before them "
            "(config.init.start_from) or in a new workdir"
        )

    def _write(self, lineage: Lineage, extra: dict[str, Any]) -> None:
        now = time.perf_counter()
        line: dict[str, Any] = {
            "step": lineage.step,
            "stage": lineage.stage,
            "stage_step": lineage.stage_step,
            "tokens": lineage.tokens,
            "flops": lineage.flops,
            "flops_6nd": lineage.flops_6nd,
            "position": lineage.position,
            "seconds": round(self._seconds_before + now - self._clock, 3),
        }
        seconds_per_step = 0.0
        if skipped := self._positions(self._line_step):
            line["skipped"], line["skipped_positions"] = len(skipped), skipped
        if self._read:
            latest = self._read[-1]
            weights = [float(step.loss_tokens) for step in self._read]
            line["loss"] = _mean([step.loss for step in self._read], weights)
            line["loss_tokens"] = round(sum(weights))
            for name, loss, tokens in zip(self._sources, *self._by_source, strict=True):
                if tokens:
                    line[f"loss/{name}"] = float(loss / tokens)
            soft = [s.distillation_loss for s in self._read if s.distillation_loss is not None]
            if soft:
                line["distillation_loss"] = _mean(soft, weights)
            line["gradient_norm"] = float(latest.gradient_norm)
            if np.isfinite(latest.step_norm):  # squares of a finite step may overflow
                line["step_norm"] = float(latest.step_norm)
            line["learning_rate"] = float(latest.learning_rate)
            elapsed = max(now - self._line_clock, 1e-9)
            self._in_steps += elapsed
            seconds_per_step = elapsed / len(self._read)
            if self._heartbeat is not None:
                of_host = (elapsed - self._waited) / len(self._read)
                line |= self._heartbeat.line(seconds_per_step, max(0.0, of_host))
            rate = (lineage.tokens - self._last_tokens) / elapsed / self._devices
            line["tokens_per_second_per_device"] = round(rate, 1)
            if self._peak is not None:
                line["mfu"] = rate * self._flops_per_token / self._peak
        wall = max(time.time() - self._started, 1e-9)
        line["started"] = round(self._started, 3)
        line["time"], line["step_seconds"] = round(time.time(), 3), round(self._in_steps, 3)
        line |= {f"{work}_seconds": round(value, 3) for work, value in self._outside.items()}
        line["goodput"] = round(min(1.0, self._in_steps / wall), 4)
        if self.failed_saves:
            line["failed_saves"] = self.failed_saves
        if self._first_step_seconds:
            line["first_step_seconds"] = round(self._first_step_seconds, 3)
            self._first_step_seconds = 0.0
        line |= extra
        self._read, self._last_tokens, self._line_clock = [], lineage.tokens, now
        self._line_step, self._waited = self._step, 0.0
        self._by_source[:] = 0
        if self._log is not None:
            self._log.write(line)
        self._terminal.show(lineage.stage_step, line, seconds_per_step)


def _what(metrics: StepMetrics) -> str:
    """Returns the loss and gradient norm of a step, and how far the loss is above the last ones."""
    what = f"loss is {metrics.loss:.4g}, gradient norm {metrics.gradient_norm:.4g}"
    far = metrics.deviations is not None and 0 < metrics.deviations < np.inf
    above = f", {metrics.deviations:.1f} deviations above the running loss" if far else ""
    return f"{what}{above}"


def _mean(values: Sequence[Any], weights: Sequence[float]) -> float:
    return float(np.average(np.array(values, np.float64), weights=weights))
