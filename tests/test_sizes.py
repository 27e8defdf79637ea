"""Bytes for people."""

import pytest

from prts_jax.sizes import format_bytes


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (33024, "33.02 kB"), (27e9, "27.00 GB"), (1.2e12, "1.20 TB")],
)
def test_bytes_have_the_largest_fitting_unit(count, text):
    assert format_bytes(count) == text
