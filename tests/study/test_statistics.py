"""The statistics of a study, on curves whose speed-up is known."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prts_jax.study.compare import bound
from prts_jax.study.statistics import (
    Curve,
    bounds,
    estimate,
    flops_at,
    rank_agreement,
    speedup,
)

FLOPS = np.geomspace(1e12, 1e15, 40)
BLOCKS = 8


def power_law(flops: np.ndarray, cost: float = 1.0, noise: float = 0.0, seed: int = 0) -> Curve:
    """Loss 2 + (FLOPs / cost / 1e12)^−0.3 by block, each block with an offset of its own."""
    random = np.random.default_rng(seed)
    offsets = np.linspace(-0.2, 0.2, BLOCKS)
    noises = noise * random.standard_normal((len(flops), BLOCKS))
    return Curve(flops, (2 + (flops / cost / 1e12) ** -0.3)[:, None] + offsets + noises)


@pytest.mark.parametrize("finished", [False, True])
def test_a_method_of_two_fifths_of_the_flops_has_a_speedup_of_exactly_three_halves(finished):
    scratch = power_law(FLOPS)
    method = power_law(FLOPS, cost=0.4)
    if finished:  # only the end of the method counts
        at_end = FLOPS[-8:-7]
        method = power_law(at_end, cost=0.4)
    assert speedup(scratch, method, finished) == pytest.approx(1.5, rel=2e-3)


def test_an_equal_method_has_none():
    assert speedup(power_law(FLOPS), power_law(FLOPS), finished=False) == 0


def test_a_loss_that_the_method_does_not_reach_bounds_the_speedup_from_above():
    pairs = [(power_law(FLOPS), power_law(FLOPS, cost=1.5, seed=k)) for k in range(2)]
    pairs.append((power_law(FLOPS), power_law(FLOPS, cost=0.5)))
    result = estimate(pairs, finished=False)
    assert result.missing == 2
    assert result.mean is result.low is result.at_least is None
    # The truth is (1 / 1.5 - 1) twice and 1 once; the slower method's end bounds it by 0.
    assert result.at_most == pytest.approx((0 + 0 + 1) / 3, rel=1e-2)
    assert bound(result) == "< +33.3% (a bound in 2 of 3 seeds)"


def test_a_loss_that_no_scratch_run_reaches_bounds_the_speedup_from_below():
    method = power_law(FLOPS[-8:-7], cost=0.1)
    low, high = bounds(power_law(FLOPS), method, finished=True)
    assert high is None
    assert low == pytest.approx(FLOPS[-1] / FLOPS[-8] - 1)
    assert low < 1 / 0.1 - 1
    result = estimate([(power_law(FLOPS), method)] * 3, finished=True)
    assert result.at_least == pytest.approx(low)
    assert bound(result).startswith("> +")


def test_scratch_runs_that_are_all_better_than_the_method_bound_it_from_above():
    method = power_law(np.array([1e11]))
    assert speedup(power_law(FLOPS), method, finished=True) is None
    assert bounds(power_law(FLOPS), method, finished=True) == (None, pytest.approx(1e12 / 1e11 - 1))


def test_a_seed_without_runs_leaves_nothing_known():
    result = estimate([(power_law(FLOPS), power_law(FLOPS, 0.5)), None], finished=False)
    assert result.at_least is result.at_most is None
    assert bound(result) == "not reached in 1 of 2 seeds"


def test_the_interval_covers_the_truth_under_noise_and_narrows_with_less_of_it():
    def interval(noise: float) -> tuple[float, float]:
        pairs = [
            (power_law(FLOPS, 1.0, noise, seed=2 * k), power_law(FLOPS, 0.5, noise, seed=2 * k + 1))
            for k in range(5)
        ]
        result = estimate(pairs, finished=False)
        assert result.low is not None
        assert result.high is not None
        return result.low, result.high

    wide, narrow = interval(0.01), interval(0.001)
    for low, high in (wide, narrow):
        assert low < 1.0 < high
    assert narrow[1] - narrow[0] < (wide[1] - wide[0]) / 2


def test_the_estimate_is_a_function_of_its_seed():
    pairs = [(power_law(FLOPS, 1, 0.01, k), power_law(FLOPS, 0.5, 0.01, 9 + k)) for k in range(3)]
    assert estimate(pairs, False, seed=1) == estimate(pairs, False, seed=1)


def test_one_seed_has_no_interval():
    assert estimate([(power_law(FLOPS), power_law(FLOPS, 0.5))], False).low is None


@given(st.lists(st.floats(0.5, 9), min_size=2, max_size=30), st.floats(0.5, 9))
def test_the_first_crossing_of_a_fit_is_no_later_than_any_loss_below_the_level(losses, level):
    """A brute-force search on a fine grid between the points finds the same crossing."""
    flops = np.geomspace(1, 1e6, len(losses))
    fit = Curve(flops, np.array(losses)[:, None]).fit()
    assert (np.diff(fit) <= 0).all()
    grid = np.geomspace(1, 1e6, 20_001)
    below = grid[np.interp(np.log(grid), np.log(flops), fit) <= level + 1e-12]
    crossing = flops_at(flops, fit, level)
    if crossing is None:
        assert not len(below)
    else:
        assert crossing == pytest.approx(below[0], rel=2e-3)


def test_rank_agreement_is_one_for_equal_orders_and_minus_one_for_opposite_ones():
    assert rank_agreement([1.0, 2.0, 3.0], [10.0, 20.0, 30.0]) == pytest.approx(1)
    assert rank_agreement([1.0, 2.0, 3.0], [30.0, 20.0, 10.0]) == pytest.approx(-1)
    assert rank_agreement([1.0], [1.0]) is None
