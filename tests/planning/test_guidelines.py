"""The paper's guidelines against its printed table, hand arithmetic and its measured runs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prts_jax.errors import UserError
from prts_jax.model.architecture import declare
from prts_jax.model.counts import count_parameters
from prts_jax.model.presets import preset
from prts_jax.planning.guidelines import (
    MEASURED,
    RANGES,
    base_model,
    growth_timing,
    outside_measurements,
    predicted_saving,
)


@pytest.mark.parametrize(
    ("params", "tokens", "growth_tokens"),
    [
        (8e9, 15e12, 6.58e9),
        (7e9, 2e12, 11.11e9),
        (13e9, 2e12, 15.84e9),
        (70e9, 2e12, 42.48e9),
    ],
)
def test_growth_timing_equals_the_papers_table(params, tokens, growth_tokens):
    assert growth_timing(params, tokens) == pytest.approx(growth_tokens, abs=0.005e9)


@given(
    st.floats(1e8, 1e11),
    st.floats(1e11, 1e14),
    st.floats(1.1, 10),
)
def test_at_equal_compute_growth_tokens_are_a_power_law_in_params(params, tokens, times):
    try:
        small, large = growth_timing(params, tokens), growth_timing(params * times, tokens / times)
    except UserError:
        return
    # C is the same, so equation 4 leaves a power law in N.
    assert large / small == pytest.approx(times**0.88)


@given(
    st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True, allow_infinity=True)
)
def test_growth_timing_is_below_the_run_length_or_refused_in_one_line(params, tokens):
    try:
        timing = growth_timing(params, tokens)
    except UserError as refused:
        assert "\n" not in str(refused)
    else:
        assert 1 <= timing < tokens


@pytest.mark.parametrize(
    ("params", "tokens", "reason"),
    [
        (0, 1e12, "params: is 0;"),
        (-7e9, 1e12, "params: is -7e\\+09;"),
        (7e9, math.inf, "tokens: is inf;"),
        (math.nan, 1e12, "params: is nan;"),
        (1e6, 1e7, "as many tokens as the run has"),
        (4.1e8, 8e9, "as many tokens as the run has"),
        (1, 1e29, "less than a token"),
        (7e9, 1e25, "beyond 1e\\+30 it says nothing"),
        (1e300, 1e300, "beyond 1e\\+30 it says nothing"),
    ],
)
def test_sizes_at_which_equation_4_has_no_meaning_are_refused(params, tokens, reason):
    with pytest.raises(UserError, match=reason):
        growth_timing(params, tokens)


@pytest.mark.parametrize("size", ["410m", "1.1b", "3b", "7b"])
def test_the_base_of_a_paper_model_is_the_papers_base(size):
    assert base_model(preset(f"paper_{size}")) == preset(f"paper_{size}_base")


@pytest.mark.parametrize("alias", ["30L2048H", "2L2048H", "0L2048H"])
def test_layers_that_are_no_multiple_of_four_are_refused(alias):
    with pytest.raises(UserError, match=r"^target: has \d+ layers, .* a multiple of 4$"):
        base_model(preset(alias))


def test_measured_parameters_are_those_of_the_papers_shapes():
    for measured, size in zip(MEASURED, ("410m", "1.1b", "3b", "7b"), strict=True):
        total = count_parameters(declare(preset(f"paper_{size}"))).total
        assert measured.params == pytest.approx(total, rel=1e-3)
    # Figure 3 gives the 1.1B's length as compute.
    assert RANGES["C = 6·N·D FLOPs"] == pytest.approx((8e20, 1.068e22), rel=1e-3)


def test_the_saving_of_the_papers_7b_equals_the_papers():
    saving = predicted_saving(5.93e9, 300e9)
    assert saving["status"] == "measured"
    assert saving["speedup"] == pytest.approx(300 / 194 - 1, abs=5e-4)
    assert saving["flops_saved"] == pytest.approx(1 - 194 / 300, abs=5e-4)


@pytest.mark.parametrize(
    ("params", "tokens", "speedup", "status"),
    [
        (373.9e6, 400e9, 0.531, "measured"),
        (1.3643e9, 97.7e9, 0.491, "measured"),
        (2.4e9, 240e9, 0.545, "measured"),
        (7e9, 300e9, 0.546, "measured"),
        (7e9, 2e12, 0.546, "extrapolated"),
        (70e9, 300e9, 0.546, "extrapolated"),
        (1e8, 400e9, 0.531, "extrapolated"),
    ],
)
def test_a_saving_is_measured_or_extrapolated(params, tokens, speedup, status):
    saving = predicted_saving(params, tokens)
    assert (saving["speedup"], saving["status"]) == (speedup, status)
    assert ("this is extrapolated" in saving["basis"]) == (status == "extrapolated")


def test_the_papers_own_runs_are_within_its_measurements():
    runs = [(measured.params, measured.tokens) for measured in MEASURED]
    for params, tokens in [*runs, (7e9, 300e9)]:  # the 7B by its name, too
        assert outside_measurements(params, tokens, growth_tokens=10e9) == []
