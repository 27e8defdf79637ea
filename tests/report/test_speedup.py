import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prts_jax.report import speedup
from prts_jax.report.runs import Run


def run(label, points, six_n_d=1.0, kind="constant"):
    rows = [
        {"flops": flops, "flops_6nd": six_n_d * flops, "validation_loss": loss}
        for flops, loss in points
    ]
    config = {"schedule": {"kind": kind}}
    return Run(label, f"runs/{label}", config, rows, "finished")


def scan_for_crossing(x, loss, level, grid=20_000):
    """Walks along the polyline in small steps and stops at the first loss that is low enough."""
    for position in np.linspace(x[0], x[-1], grid):
        if np.interp(position, x, loss) <= level:
            return position
    return None


curves = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 40)), min_size=1, max_size=8).map(
    lambda steps: (
        np.cumsum([step for step, _ in steps]).astype(float),
        np.array([loss / 8 for _, loss in steps]),
    )
)


@given(curves, st.integers(-1, 41))
def test_the_first_crossing_is_where_a_walk_along_the_curve_meets_the_level(curve, eighths):
    x, loss = curve
    # Between the losses: the walk would step over a dip that only touches the level.
    level = eighths / 8 + 1 / 16
    crossing = speedup.first_crossing(x, loss, level)
    walked = scan_for_crossing(x, loss, level)
    if walked is None:
        assert crossing is None
    else:
        assert crossing == pytest.approx(walked, abs=2 * (x[-1] - x[0]) / 20_000 + 1e-9)


def test_nothing_is_extrapolated_below_the_lowest_loss():
    assert speedup.first_crossing(np.array([1.0, 2.0]), np.array([4.0, 3.0]), 2.999) is None


def test_a_rising_loss_counts_at_its_first_crossing():
    x, loss = np.array([0.0, 1.0, 2.0, 3.0]), np.array([4.0, 2.0, 3.0, 1.0])
    assert speedup.first_crossing(x, loss, 2.5) == 0.75


def test_half_the_flops_are_a_speedup_of_one():
    baseline = run("scratch", [(0, 8.0), (100, 4.0), (200, 3.0)])
    grown = run("grown", [(40, 6.0), (80, 4.0), (120, 2.0)])
    primary, *_ = speedup.compare(grown, baseline)
    assert primary.loss == 3.0
    assert (primary.flops_baseline, primary.flops_run) == (200, 100)
    assert primary.speedup == 1.0


def test_the_papers_speedup_follows_from_its_token_counts():
    baseline = run("scratch", [(0, 11.0), (300e9, 2.0)])
    grown = run("grown", [(10e9, 3.0), (194e9, 2.0)])
    assert 100 * speedup.compare(grown, baseline)[0].speedup == pytest.approx(54.6, abs=0.05)


def test_the_bases_flops_lower_the_speedup():
    points = [(0, 5.0), (50, 4.0), (100, 3.0)]
    baseline = run("scratch", [(0, 5.0), (300, 3.0)])
    alone = speedup.compare(run("grown", points), baseline)[0]
    with_base = speedup.compare(run("grown", [(x + 100, y) for x, y in points]), baseline)[0]
    assert (alone.speedup, with_base.speedup) == (2.0, 0.5)


def test_the_speedup_of_power_laws_equals_algebra():
    x = np.linspace(1.0, 400.0, 4000)
    baseline = run("scratch", zip(x, 2 + 4 * x**-0.5, strict=True))
    grown = run("grown", zip(x, 2 + 3 * x**-0.5, strict=True))
    primary = speedup.compare(grown, baseline)[0]
    # 3 x^-½ = 4 · 400^-½ at x = 400 · (3/4)².
    assert primary.speedup == pytest.approx(16 / 9 - 1, rel=1e-4)


def test_a_run_above_the_baselines_lowest_loss_has_not_reached_it():
    baseline = run("scratch", [(0, 8.0), (100, 2.0)])
    primary, common, *_ = speedup.compare(run("grown", [(10, 5.0), (60, 4.0)]), baseline)
    assert primary.flops_run is None
    assert primary.speedup is None
    assert common.loss == 4.0
    assert common.flops_baseline == pytest.approx(100 * 4 / 6)
    assert common.speedup == pytest.approx(100 * 4 / 6 / 60 - 1)


def test_an_overfitted_baseline_is_measured_at_its_best():
    baseline = run("scratch", [(0, 8.0), (100, 3.0), (200, 5.0)])
    primary, *_ = speedup.compare(run("grown", [(10, 6.0), (50, 3.0)]), baseline)
    assert (primary.loss, primary.flops_baseline, primary.speedup) == (3.0, 100, 1.0)


def test_a_run_that_starts_below_the_loss_counts_its_base():
    baseline = run("scratch", [(0, 8.0), (100, 3.0)])
    primary, *_ = speedup.compare(run("grown", [(50, 2.5), (60, 2.0)]), baseline)
    assert (primary.flops_run, primary.speedup) == (50, 1.0)


def test_a_baseline_that_starts_at_its_lowest_loss_has_no_known_cost():
    baseline = run("scratch", [(500, 3.0), (600, 3.5)])
    primary, *_ = speedup.compare(run("grown", [(10, 4.0), (60, 2.0)]), baseline)
    assert primary.flops_baseline is None
    assert primary.speedup is None


def test_six_n_d_is_measured_on_its_own_axis():
    baseline = run("scratch", [(0, 8.0), (100, 3.0)], six_n_d=1.5)
    primary, *_ = speedup.compare(run("grown", [(10, 4.0), (50, 3.0)], six_n_d=1.0), baseline)
    assert (primary.speedup, primary.speedup_6nd) == (1.0, 2.0)


@pytest.mark.parametrize("kinds", [("cosine", "constant"), ("constant", "wsd"), ("constant", None)])
def test_schedules_are_compared_only_at_their_ends(kinds):
    points = [(0, 8.0), (25, 6.0), (50, 5.0), (75, 4.5), (100, 4.0)]
    baseline, grown = (run("a", points, kind=kind) for kind in kinds)
    assert [level.at for level in speedup.compare(grown, baseline)] == ["the baseline's lowest"]


def test_further_levels_are_the_baselines_loss_along_its_way():
    baseline = run("scratch", [(0, 8.0), (25, 6.0), (50, 5.0), (75, 4.5), (100, 4.0)])
    levels = speedup.compare(run("grown", [(10, 9.0), (80, 3.0)]), baseline)
    assert [level.loss for level in levels] == [4.0, 4.5, 5.0, 6.0]
    assert [level.flops_baseline for level in levels] == [100, 75, 50, 25]


def test_without_evaluations_there_is_nothing_to_compare():
    assert speedup.compare(run("grown", []), run("scratch", [(0, 8.0), (1, 3.0)])) == []
    assert speedup.compare(run("grown", [(1, 3.0)]), run("scratch", [])) == []


def test_a_loss_that_is_not_a_number_is_no_evaluation():
    baseline = run("scratch", [(0, 8.0), (100, 3.0), (200, math.nan)])
    primary, *_ = speedup.compare(run("grown", [(10, 4.0), (20, math.nan), (50, 3.0)]), baseline)
    assert dataclasses.astuple(primary)[2:5] == (3.0, 100, 50)
