"""Heartbeats: a small file a host in `WORKDIR/heartbeats`, written while it trains.

Read by `prts report` and, with the standard library alone, by `prts tpu status`.
"""

import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from prts_jax.text_table import MISSING, Table, duration

FOLDER = "heartbeats"

BEAT_SECONDS = 20.0
"""Seconds between two beats of a host."""

SILENT_SECONDS = 120.0
"""Age of a beat from which its host is taken for dead, or for cut off from the storage."""

STILL_SECONDS = 300.0
"""Least age of a step from which a host that beats stands still; it may evaluate or compile."""

STILL_STEPS = 10.0
"""The same in steps, where these take longer."""


@dataclasses.dataclass(frozen=True)
class Beat:
    """Figures of one host; times in seconds, those of day since the epoch.

    Attributes:
      host: index of the process.
      step: of the lineage, the last one finished.
      stepped: when it finished; before the first of a stage, when the stage was set up.
      step_seconds: wall time of a step since the last line of metrics.
      host_seconds: the part of it in which the host does not wait for its devices: it reads data,
        dispatches and writes.
      ended: whether the process has ended on its own.
      hbm_bytes: in use on the fullest device; None where the backend does not tell.
      hbm_peak_bytes: the most so far.
      hbm_limit_bytes: available to the program.
    """

    host: int
    name: str
    time: float
    step: int
    stepped: float
    step_seconds: float | None = None
    host_seconds: float | None = None
    ended: bool = False
    hbm_bytes: int | None = None
    hbm_peak_bytes: int | None = None
    hbm_limit_bytes: int | None = None

    def to_json(self) -> str:
        """Returns the beat as one line."""
        return json.dumps(dataclasses.asdict(self)) + "\n"

    def state(self, now: float) -> str:
        """Returns "ended", "silent", "stands still" or "running"."""
        if self.ended:
            return "ended"
        if now - self.time > SILENT_SECONDS:
            return "silent"
        if now - self.stepped > max(STILL_SECONDS, STILL_STEPS * (self.step_seconds or 0.0)):
            return "stands still"
        return "running"


def parse(text: str) -> list[Beat]:
    """Reads lines of beats, by rising host; leaves out those that are none."""
    beats = []
    for line in text.splitlines():
        try:
            values = json.loads(line)
            beat = Beat(**{field.name: values[field.name] for field in dataclasses.fields(Beat)})
            numbers = [value for name, value in values.items() if name != "name"]
            always = (beat.host, beat.time, beat.step, beat.stepped)
            if None not in always and all(isinstance(n, int | float | None) for n in numbers):
                beats.append(dataclasses.replace(beat, name=str(beat.name)))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue
    return sorted(beats, key=lambda beat: beat.host)


def host_table(beats: Iterable[tuple[str, Beat]], now: float | None = None) -> Table:
    """Returns a row a host, of pairs of a run's label and a beat."""
    now = time.time() if now is None else now
    header = ("run", "host", "state", "step", "last step", "last beat", "s/step", "of the host")
    rows = [_row(label, beat, now) for label, beat in beats]
    title = (
        "Hosts: ages of the last step and beat; seconds a step, and without waiting for devices."
    )
    return Table(title, (*header, "HBM", "peak", "of"), rows, text_columns=3)


def _row(label: str, beat: Beat, now: float) -> Sequence[str]:
    name = "".join(character if character.isprintable() else "?" for character in beat.name)
    return (
        label,
        f"{beat.host} {name}",
        beat.state(now),
        str(beat.step),
        duration(now - beat.stepped),
        duration(now - beat.time),
        _seconds(beat.step_seconds),
        _seconds(beat.host_seconds),
        *map(_gib, (beat.hbm_bytes, beat.hbm_peak_bytes, beat.hbm_limit_bytes)),
    )


def _seconds(value: Any) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _gib(value: Any) -> str:
    return MISSING if value is None else f"{value / 2**30:.2f} GiB"
