"""Later work applied to a plan, against hand arithmetic and the sources' figures."""

import math
from typing import Any

import pytest

from prts_jax.errors import UserError
from prts_jax.planning import later_work
from prts_jax.planning.plan import make_plan

CONSTANTS = "12,0.1,0.3,0.005,1.8"


@pytest.fixture(scope="module")
def plan() -> dict[str, Any]:
    return make_plan(tokens=2e12, preset="llama2_7b", t_mix=1e11, saturation=CONSTANTS, length=2048)


def test_every_statement_has_a_source_and_a_range(plan):
    assert list(plan["later_work"]) == [
        "base_cost",
        "growth_factor",
        "wsd",
        "saturation",
        "counter_evidence",
    ]
    for said in plan["later_work"].values():
        assert said["statement"]
        assert said["source"].startswith(("arXiv ", "marin-community/marin #7838"))
        assert said["range"]


def test_a_sunk_base_costs_nothing(plan):
    flops, cost = plan["flops"], plan["later_work"]["base_cost"]
    assert cost["booked"]["speedup"] == pytest.approx(plan["saving"]["speedup"])
    assert cost["sunk"]["flops"] == flops["grown"] - flops["base"]
    assert cost["sunk"]["speedup"] == pytest.approx(flops["scratch"] / cost["sunk"]["flops"] - 1)
    assert cost["sunk"]["speedup"] > cost["booked"]["speedup"]


@pytest.mark.parametrize(("tokens", "advised"), [(19e9, None), (20e9, None), (21e9, 2)])
def test_beyond_20_tokens_per_parameter_a_factor_of_2_is_advised(tokens, advised):
    advice = later_work.growth_factor(params=1e9, tokens=tokens, factor=4)
    assert advice["tokens_per_parameter"] == tokens / 1e9
    assert advice["advised"] == advised


def test_growth_under_wsd_is_at_t_mix_before_the_end(plan):
    said, per_token = plan["later_work"]["wsd"], plan["target"]["flops_per_token"]
    assert said["growth_tokens"] == 1.9e12
    assert said["flops"] == pytest.approx(
        plan["base"]["flops_per_token"] * 1.9e12 + per_token * 1e11
    )
    assert said["flops_saved"] == pytest.approx(1 - said["flops"] / (per_token * 2e12))
    assert later_work.growth_under_wsd(1e12, 1.0, 4.0, None)["growth_tokens"] == 8e11


@pytest.mark.parametrize("t_mix", [0.0, -1.0, 2e12, math.nan, math.inf])
def test_a_mixing_time_outside_the_run_is_refused(t_mix):
    with pytest.raises(UserError, match=r"--t_mix=.*above 0 and below --tokens"):
        later_work.growth_under_wsd(2e12, 1.0, 4.0, t_mix)


def test_the_saturation_law_equals_hand_arithmetic(plan):
    d1, d2 = plan["growth_tokens"], plan["tokens_after_growth"]["equal_loss"]
    said = plan["later_work"]["saturation"]
    assert said["exponent"] == pytest.approx(0.3 - 0.005 * math.log(d1))
    by_hand = math.log(12) - 0.1 * math.log(d1) + (-0.3 + 0.005 * math.log(d1)) * math.log(d2)
    assert said["loss"] == pytest.approx(math.exp(by_hand) + 1.8)
    assert f"L = {said['loss']:.4g}" in said["statement"]


def test_a_longer_base_leaves_tokens_after_growth_less_to_gain():
    law = later_work.SaturationLaw(*map(float, CONSTANTS.split(",")))
    gains = [law.loss(d1, 1e10) - law.loss(d1, 2e10) for d1 in (1e9, 1e10, 1e11)]
    assert gains == sorted(gains, reverse=True)
    assert law.exponent(math.exp(0.3 / 0.005)) == pytest.approx(0)


def test_without_constants_the_law_is_stated_and_not_evaluated():
    said = make_plan(tokens=3e11, preset="paper_7b")["later_work"]["saturation"]
    assert (said["loss"], said["exponent"]) == (None, None)


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d,e", "1,1,1,1,nan", "1,1,1,1,-1", "1,,1,1,1"])
def test_other_than_five_constants_are_refused(text):
    with pytest.raises(UserError, match="five constants of at least 0"):
        later_work.saturation(1e9, 1e10, text)


def test_constants_that_overflow_are_refused():
    with pytest.raises(UserError, match="no finite loss"):
        later_work.saturation(1e12, 1e12, "1,0,0,1e9,0")


def test_the_counter_evidence_states_its_figures():
    text = later_work.COUNTER_EVIDENCE["statement"]
    assert all(figure in text for figure in ("2.058", "1.93", "2.135", "2.06"))
