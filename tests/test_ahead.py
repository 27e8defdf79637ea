"""One step ahead: in order, two values at most, errors in their place."""

import threading

import pytest

from prts_jax.ahead import one_ahead


def test_values_come_in_order_and_two_exist_at_most():
    built, taken, most = [], [], 0
    both = threading.Lock()

    def make(number):
        nonlocal most
        with both:
            built.append(number)
            most = max(most, len(built) - len(taken))
        return number

    for value in one_ahead(lambda number=number: make(number) for number in range(50)):
        assert value == len(taken)
        with both:
            taken.append(value)
    assert built == taken == list(range(50))
    assert most == 2


def test_the_next_is_made_while_this_one_is_held():
    started = threading.Event()
    values = one_ahead([lambda: 1, lambda: started.set() or 2, lambda: 3])
    assert next(values) == 1
    assert started.wait(timeout=60)
    assert list(values) == [2, 3]


def test_an_error_comes_where_its_value_would():
    def fail():
        raise OSError("no such tensor")

    values = one_ahead([lambda: 1, fail, lambda: 3])
    assert next(values) == 1
    with pytest.raises(OSError, match="no such tensor"):
        next(values)


def test_of_nothing_comes_nothing():
    assert list(one_ahead([])) == []
