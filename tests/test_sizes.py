"""Bytes and seconds for people."""

import pytest

from prts_jax.sizes import format_bytes, format_seconds


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (33024, "33.02 kB"), (27e9, "27.00 GB"), (1.2e12, "1.20 TB")],
)
def test_bytes_have_the_largest_fitting_unit(count, text):
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "under 1 s"),
        (75, "about 75 s"),
        (600, "about 10 min"),
        (8000, "about 2 h 13 min"),
    ],
)
def test_seconds_have_the_fitting_unit(seconds, text):
    assert format_seconds(seconds) == text
