"""Examples are packed whole: every one once, none in two rows, each where it fits best."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.chat.packing import Packing, best_fit, pack
from data_pipelines.store.writer import Encoded
from prts_jax.errors import UserError

sizes_of = st.lists(st.integers(1, 12), max_size=40)


def by_trying_all_rows(sizes: list[int], row_size: int) -> list[int]:
    """The space that each row has left, by looking at every row for every example."""
    spaces: list[int] = []
    for size in sizes:
        fitting = [space for space in spaces if space >= size]
        if fitting:
            spaces[spaces.index(min(fitting))] -= size
        else:
            spaces.append(row_size - size)
    return sorted(spaces)


@given(sizes=sizes_of, more=st.integers(0, 12))
def test_best_fit_equals_an_exhaustive_search(sizes: list[int], more: int):
    row_size = max(sizes, default=1) + more
    rows = best_fit(sizes, row_size)
    assert sorted(number for row in rows for number in row) == list(range(len(sizes)))
    spaces = [row_size - sum(sizes[number] for number in row) for row in rows]
    assert min(spaces, default=0) >= 0
    assert sorted(spaces) == by_trying_all_rows(sizes, row_size)


def examples_of(sizes: list[int]) -> list[Encoded]:
    """Example i is made of tokens i + 1."""
    return [
        Encoded(np.full(size, number + 1), number % 2, answers=np.arange(size) > 0)
        for number, size in enumerate(sizes)
    ]


@given(sizes=sizes_of, seed=st.integers(0, 3))
def test_rows_hold_whole_examples_then_padding(sizes: list[int], seed: int):
    packing = Packing(length=12, seed=seed)
    actual = list(pack(examples_of(sizes), packing, padding_source=2, padding_id=0))
    tokens = np.concatenate([np.zeros(0, int), *(document.tokens for document in actual)])
    assert len(tokens) % 13 == 0
    for row in tokens.reshape(-1, 13):
        real = row[row > 0]
        assert (row[len(real) :] == 0).all()
        # An example's tokens are together, and all of them are in this row.
        assert len(np.flatnonzero(np.diff(real))) + 1 == len(np.unique(real))
        for example in np.unique(real):
            assert (real == example).sum() == sizes[example - 1]
    kept = sorted((d.tokens[0], d.source) for d in actual if d.source < 2)
    assert kept == [(number + 1, number % 2) for number in range(len(sizes))]
    for padding in (document for document in actual if document.source == 2):
        assert padding.answers is not None
        assert not padding.tokens.any()
        assert not padding.answers.any()


def test_the_seed_decides_the_order_of_packing():
    def order(seed: int) -> list[int]:
        packed = pack(examples_of([3] * 30), Packing(12, seed=seed), 2, 0)
        return [int(document.tokens[0]) for document in packed]

    assert order(0) == order(0) != order(1)


@pytest.mark.parametrize("wrong", [{"length": 1}, {"held_out": 1.0}, {"held_out": -0.1}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
        Packing(**{"length": 8, **wrong})  # type: ignore[arg-type]
