"""Plans against hand arithmetic."""

import json
import math
from typing import Any

import pytest

from prts_jax.config import to_dict
from prts_jax.errors import UserError
from prts_jax.model.presets import preset
from prts_jax.planning.guidelines import GROWTH_FACTOR
from prts_jax.planning.plan import make_plan, nearest_preset


@pytest.fixture(scope="module")
def llama2_7b() -> dict[str, Any]:
    return make_plan(tokens=2e12, preset="llama2_7b", hardware="v5p-256", mfu=0.5)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        (7e9, "llama2_7b"),
        (8e9, "llama3_8b"),
        (1.68e9, "paper_1.1b"),  # not the 7B's base, whose count this is
        (1e6, "paper_410m"),
        (1e13, "llama3_70b"),
    ],
)
def test_the_nearest_preset_is_a_target(params, name):
    assert nearest_preset(params) == name


def test_flops_equal_hand_arithmetic(llama2_7b: dict[str, Any]):
    d, tokens, length = llama2_7b["growth_tokens"], 2e12, 2048
    layer = 4 * 4096**2 + 3 * 4096 * 11008
    head = 32000 * 4096

    def per_token(layers: int) -> int:
        return 6 * (layers * layer + head) + 3 * layers * 2 * 4096 * (length + 1)

    assert llama2_7b["flops"]["base"] == pytest.approx(per_token(8) * d)
    assert llama2_7b["flops"]["scratch"] == per_token(32) * tokens
    assert llama2_7b["flops"]["scratch_6nd"] == 6 * 6_738_415_616 * tokens
    assert llama2_7b["flops"]["base_6nd"] == pytest.approx(6 * llama2_7b["base"]["params"] * d)
    shape = to_dict(preset("llama2_7b")) | {"layers": 8}
    assert llama2_7b["base"].items() >= shape.items()


def test_the_grown_run_includes_its_base_and_has_the_predicted_speedup(llama2_7b: dict[str, Any]):
    flops, after = llama2_7b["flops"], llama2_7b["tokens_after_growth"]
    per_token = flops["scratch"] / 2e12
    assert flops["scratch"] / flops["grown"] - 1 == pytest.approx(llama2_7b["saving"]["speedup"])
    assert flops["base"] + after["equal_loss"] * per_token == pytest.approx(flops["grown"])
    assert flops["base"] + after["equal_flops"] * per_token == pytest.approx(flops["scratch"])
    assert flops["base_6nd"] + 6 * llama2_7b["target"]["params"] * after[
        "equal_loss"
    ] == pytest.approx(flops["grown_6nd"])
    assert 0 < after["equal_loss"] < after["equal_flops"] < 2e12


def test_params_default_to_the_presets_count(llama2_7b: dict[str, Any]):
    assert llama2_7b["params"] == 6_738_415_616
    assert llama2_7b["target"]["preset_given"]
    assert make_plan(tokens=2e12, params=7e9)["growth_tokens"] > llama2_7b["growth_tokens"]


def test_a_longer_context_adds_attention_flops_only():
    short, long = (
        make_plan(tokens=1e11, preset="paper_1.1b", length=length) for length in (2048, 8192)
    )
    assert long["flops"]["scratch"] - short["flops"]["scratch"] == pytest.approx(
        3 * 24 * 2 * 2048 * (8192 - 2048) * 1e11
    )
    assert long["flops"]["scratch_6nd"] == short["flops"]["scratch_6nd"]


@pytest.mark.parametrize(
    ("hardware", "chips", "peak"),
    [
        ("v2-8", 4, 45e12),
        ("v4-32", 16, 275e12),
        ("v5litepod-16", 16, 197e12),
        ("v5p-256", 128, 459e12),
        ("v6e-64", 64, 918e12),
    ],
)
def test_days_are_flops_over_peak_times_mfu(hardware, chips, peak):
    plan = make_plan(tokens=1e11, preset="paper_1.1b", hardware=hardware, mfu=0.25)
    assert plan["hardware"]["chips"] == chips
    per_second = chips * peak * 0.25
    for part in ("base", "grown", "scratch"):
        seconds = plan["flops"][part] / per_second
        assert plan["hardware"]["days"][part] * 24 * 3600 == pytest.approx(seconds)


def test_a_plan_within_the_measured_range_has_no_warnings():
    plan = make_plan(tokens=300e9, preset="paper_7b")
    assert plan["warnings"] == []
    assert plan["saving"]["status"] == "measured"


@pytest.mark.parametrize(
    ("params", "tokens", "preset", "starts"),
    [
        (7e9, 2e12, "llama2_7b", ["tokens:", "C ="]),
        (13e9, 300e9, "llama2_13b", ["parameters:", "C ="]),
        (70e9, 2e12, "llama2_70b", ["parameters:", "tokens:", "C ="]),
        (1.4e9, 30e9, "paper_1.1b", ["tokens:", "C =", "growth tokens d: 68%"]),
        (7e9, 300e9, "paper_3b", ["preset: paper_3b has 2.4e+09"]),
    ],
)
def test_a_plan_outside_the_measured_range_has_warnings(params, tokens, preset, starts):
    warnings = make_plan(tokens, params, preset)["warnings"]
    for warning, start in zip(warnings, starts, strict=True):
        assert warning.startswith(start)


def test_a_plan_can_be_written_as_json(llama2_7b: dict[str, Any]):
    plan = json.loads(json.dumps(llama2_7b, allow_nan=False))
    assert plan["growth_factor"] == GROWTH_FACTOR == 4
    assert plan["base"]["layers"] == 8
    assert {"base", "grown", "scratch"} <= plan["flops"].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "--params is missing"),
        ({"preset": "llama2_7"}, "did you mean 'llama2_7b'"),
        ({"params": 7e9, "length": 0}, "--length=0: a sequence has at least 1 token"),
        ({"params": 7e9, "hardware": "v5-256"}, "--hardware=v5-256: 'v5' is unknown; did you mean"),
        ({"params": 7e9, "hardware": "v5e-256"}, "write --hardware=v5litepod-256"),
        ({"params": 7e9, "hardware": "v5p"}, "--hardware=v5p: not GENERATION-SIZE"),
        ({"params": 7e9, "hardware": "v5p-256", "mfu": 0.0}, "--mfu=0: a share of the peak"),
        ({"params": 7e9, "hardware": "v5p-256", "mfu": math.nan}, "--mfu=nan"),
        ({"params": 7e9, "hardware": "v5p-256", "mfu": 40.0}, "--mfu=40"),
    ],
)
def test_make_plan_refuses_invalid_arguments(arguments, message):
    with pytest.raises(UserError, match=message):
        make_plan(tokens=1e12, **arguments)
