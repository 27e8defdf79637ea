"""Rows by chunks: the right ones, and no chunk read again and again."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prts_jax.growth.on_disk.row_reader import RowReader
from prts_jax.growth.widening import NEW

ROWS = np.arange(37 * 3).reshape(37, 3)


@given(st.lists(st.integers(NEW, 36), min_size=1), st.integers(1, 50))
def test_any_rows_are_those_of_the_array_and_new_ones_are_zero(places, chunk_rows):
    reader = RowReader(ROWS.__getitem__, 37, chunk_rows)
    expected = [ROWS[spot] if spot != NEW else np.zeros(3) for spot in places]
    np.testing.assert_array_equal(reader.take(places), expected)


def test_rows_in_order_read_every_chunk_once():
    slices = []

    def read(rows: slice) -> np.ndarray:
        slices.append((rows.start, rows.stop))
        return ROWS[rows]

    reader = RowReader(read, 37, 10)
    for start in range(0, 37, 2):
        reader.take([*range(start, min(start + 2, 37)), NEW, NEW])
    assert slices == [(0, 10), (10, 20), (20, 30), (30, 37)]
