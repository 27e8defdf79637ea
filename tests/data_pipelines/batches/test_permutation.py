from collections import Counter
from math import factorial

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.batches.permutation import permute


@given(size=st.integers(1, 5000), key=st.text())
def test_permute_is_a_bijection(size: int, key: str):
    permuted = permute(np.arange(size), size, key)
    assert sorted(permuted) == list(range(size))


@given(size=st.integers(1, 1 << 40), data=st.data())
def test_single_indices_of_ranges_beyond_memory_are_permuted(size: int, data: st.DataObject):
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=9)))
    permuted = permute(indices, size, "key")
    assert permuted.dtype == np.int64
    assert ((permuted >= 0) & (permuted < size)).all()
    for index, number in zip(indices, permuted, strict=True):
        assert permute(np.array([index]), size, "key") == number
    assert len(set(permuted.tolist())) == len(set(indices.tolist()))


def test_another_key_gives_another_order():
    orders = {tuple(permute(np.arange(100), 100, f"{key}")) for key in range(50)}
    assert len(orders) == 50


def test_all_orders_of_a_small_range_are_about_equally_frequent():
    size, draws = 4, 1200
    counts = Counter(tuple(permute(np.arange(size), size, f"{key}")) for key in range(draws))
    expected = draws / factorial(size)
    chi_square = sum((count - expected) ** 2 / expected for count in counts.values())
    assert len(counts) == factorial(size)
    assert chi_square < 52  # 23 degrees of freedom: passed by 99.95% of fair shuffles


def test_neighbours_are_scattered():
    size = 100_000
    permuted = permute(np.arange(size), size, "key")
    correlation = np.corrcoef(permuted[:-1], permuted[1:])[0, 1]
    assert abs(correlation) < 0.02
    # The mean distance of two random numbers is a third of the range.
    assert abs(np.abs(np.diff(permuted)).mean() / size - 1 / 3) < 0.01
