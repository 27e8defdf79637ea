"""What a growth is said to cost before it is begun."""

import os

import pytest

from prts_jax.errors import UserError
from prts_jax.growth.on_disk import forecast as module
from prts_jax.growth.on_disk import stream
from prts_jax.growth.on_disk.forecast import PROBE_BYTES, forecast, measured_write_rate
from prts_jax.growth.operators import make_map
from tests.checkpoint.tiny import MODEL, write_source


@pytest.fixture
def stacked(tmp_path):
    write_source(tmp_path / "source")
    return stream.plan(str(tmp_path / "source"), make_map(MODEL, None, "stack", 2))


def test_streaming_is_forecast_from_the_rate_of_the_disk(stacked, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measured_write_rate", lambda target, wanted: 1000.0)
    expected = forecast(stacked, str(tmp_path / "grown"), "stream")
    done = stream.stream(stacked.source, str(tmp_path / "grown"), stacked.growth_map)
    assert expected.mode == "stream"
    assert (expected.bytes_read, expected.bytes_written) == (done.bytes_read, done.bytes_written)
    assert expected.seconds == done.bytes_written / 1000
    assert expected.bytes_free > 0
    assert expected.memory_bytes > stream.stream_memory(stacked)


def test_growth_by_reference_writes_no_values_and_tries_no_disk(stacked, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "measured_write_rate", None)
    expected = forecast(stacked, str(tmp_path / "grown"))
    assert (expected.mode, expected.write_rate) == ("reference", None)
    assert expected.seconds == module.REFERENCE_SECONDS


def test_the_rate_is_measured_and_nothing_is_left(tmp_path):
    rate = measured_write_rate(str(tmp_path / "deeper" / "grown"), 3 * 2**20)
    assert rate is not None
    assert 1e5 < rate < 1e11
    assert not list(tmp_path.iterdir())


def test_no_more_is_written_than_a_tenth_of_what_is_free(tmp_path, monkeypatch):
    written = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda file: (written.append(os.fstat(file).st_size), fsync(file))
    )
    monkeypatch.setattr(module, "free_bytes", lambda target: 5_000_000)
    assert measured_write_rate(str(tmp_path / "grown"), 10**12) is not None
    assert written == [500_000]
    monkeypatch.setattr(module, "free_bytes", lambda target: 0)
    assert measured_write_rate(str(tmp_path / "grown"), PROBE_BYTES) is None


def test_where_nothing_can_be_written_the_dry_run_says_so(monkeypatch):
    monkeypatch.setattr(module, "free_bytes", lambda target: 10**9)
    with pytest.raises(UserError, match=r"/proc/x: cannot be written \(.+\); choose another"):
        measured_write_rate("/proc/x")
