"""The heartbeat of a process: stored by a thread, gathered from the others, never in the way."""

import time

import jax
import pytest

from prts_jax.heartbeats import Beat, parse
from prts_jax.train import heartbeat
from prts_jax.train.heartbeat import Heartbeat


class Service:
    """Stands for the coordination service: keys and values."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def key_value_set(self, key: str, value: str, allow_overwrite: bool) -> None:
        self.values[key] = value

    def key_value_dir_get(self, folder: str) -> list[tuple[str, str]]:
        return [(key, value) for key, value in self.values.items() if key.startswith(folder)]


def until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def stored(workdir) -> list[Beat]:
    return parse("".join(path.read_text() for path in (workdir / "heartbeats").glob("*.json")))


def test_a_process_stores_its_step_and_says_when_it_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    (tmp_path / "heartbeats").mkdir()
    (tmp_path / "heartbeats/host_7.json").write_text("of a larger start")
    before = time.time()
    with Heartbeat(str(tmp_path)).beating() as pulse:
        pulse.step(12)
        assert pulse.line(0.5, 0.1) == {}  # neither several processes nor HBM
        until(lambda: any(beat.step_seconds for beat in stored(tmp_path)))
        [beat] = stored(tmp_path)
        assert (beat.host, beat.step, beat.host_seconds, beat.ended) == (0, 12, 0.1, False)
        assert before <= beat.stepped <= beat.time <= time.time()
    [beat] = stored(tmp_path)
    assert beat.ended
    assert [path.name for path in (tmp_path / "heartbeats").iterdir()] == ["host_0.json"]


def test_nothing_is_stored_before_a_stage_is_set_up(tmp_path):
    with Heartbeat(str(tmp_path)).beating():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_storage_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    (tmp_path / "heartbeats").write_text("a file where the folder belongs")
    with Heartbeat(str(tmp_path)).beating() as pulse:
        pulse.step(1)
        time.sleep(0.1)
        (tmp_path / "heartbeats").unlink()
        until(lambda: (tmp_path / "heartbeats").is_dir() and stored(tmp_path))


@pytest.mark.parametrize("late", [False, True])
def test_a_line_names_the_slowest_host_among_those_that_have_reported(tmp_path, monkeypatch, late):
    service = Service()
    for host, seconds in ((1, 0.2), (2, 0.9), (3, None if late else 0.3)):
        beat = Beat(host, f"w-{host}", 0.0, 5, 0.0, 1.0, seconds, False, 10, 20 + host, 30)
        service.values[f"{heartbeat.SHARED}/{host}"] = beat.to_json()
    monkeypatch.setattr(heartbeat, "coordination_client", lambda: service)
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with Heartbeat(str(tmp_path)).beating() as pulse:
        pulse.step(5)
        pulse.line(1.0, 0.1)
        until(lambda: len(pulse._known) == 4 and pulse._known[0].host_seconds)
        figures = pulse.line(1.0, 0.1)
    assert figures == {
        "hbm_peak_bytes": 23,
        "median_host_seconds": 0.2 if late else 0.25,
        "slowest_host_seconds": 0.9,
        "slowest_host": 2,
    }
    assert parse(service.values[f"{heartbeat.SHARED}/0"])[0].ended
