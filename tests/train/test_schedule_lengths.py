"""Lengths of a schedule in steps, tokens and shares, the curve in words, and its warnings."""

import dataclasses

import numpy as np
import pytest

from prts_jax.config import ScheduleConfig, parse_length
from prts_jax.errors import UserError
from prts_jax.train.curve import describe, draw, warnings
from prts_jax.train.schedule import learning_rate
from prts_jax.train.schedule_lengths import Span, resolve
from tests.train import tiny

ALONE = Span(first=0, steps=1000, last=1000, tokens=0, tokens_per_step=128)
GROWN = Span(first=400, steps=600, last=1000, tokens=400 * 128, tokens_per_step=256)
WSD = ScheduleConfig(kind="wsd", warmup="2%", decay="10%")


@pytest.mark.parametrize(
    ("text", "length"),
    [
        ("300", (300, "steps")),
        ("10", (10, "steps")),
        ("1 step", (1, "steps")),
        ("2k steps", (2000, "steps")),
        ("1.5B tokens", (1.5e9, "tokens")),
        ("1 token", (1, "tokens")),
        ("10%", (10, "%")),
        ("12.5 %", (12.5, "%")),
    ],
)
def test_lengths_are_read(text, length):
    assert parse_length(text) == length


@pytest.mark.parametrize(
    "text", ["x", "-3", "110%", "1k%", "3 days", "%", "", "9" * 400, "9" * 10 + "T tokens"]
)
def test_other_lengths_are_refused(text):
    with pytest.raises(UserError, match="give steps, tokens or a share"):
        parse_length(text, "schedule.decay")


def test_a_wrong_length_is_refused_with_the_config():
    with pytest.raises(UserError, match=r"config\.schedule\.decay: is 'soon'"):
        tiny.run_config(schedule__decay="soon")


@pytest.mark.parametrize(
    ("schedule", "span", "steps"),
    [
        (WSD, ALONE, (20, 900, 1000)),
        (dataclasses.replace(WSD, decay="12800 tokens"), ALONE, (20, 900, 1000)),
        (dataclasses.replace(WSD, warmup="6400 tokens", decay="50"), ALONE, (50, 950, 1000)),
        # The lineage's steps: 2% and 10% of 1000, whichever stage asks.
        (dataclasses.replace(WSD, after_growth="keep"), GROWN, (20, 900, 1000)),
        # The stage's steps: 2% and 10% of 600.
        (WSD, GROWN, (12, 540, 600)),
        # The warm-up counts from the growth, the decay from the first step.
        (dataclasses.replace(WSD, after_growth="rewarm"), GROWN, (12, 900, 1000)),
        (ScheduleConfig(kind="cosine", warmup="10", decay="100%"), ALONE, (10, 0, 1000)),
        # Tokens of the lineage: 400 steps of 128, then steps of 256.
        (
            ScheduleConfig(
                kind="cosine", after_growth="keep", warmup="25600 tokens", decay="102400 tokens"
            ),
            GROWN,
            (200, 0, 600),
        ),
    ],
)
def test_lengths_become_steps(schedule, span, steps):
    resolved = resolve(schedule, span)
    assert (resolved.warmup_steps, resolved.decay_start, resolved.decay_end) == steps
    assert resolve(resolved, span) == resolved


@pytest.mark.parametrize("decay", ["0%", "99%", "2000 steps"])
def test_a_decay_that_does_not_fit_behind_the_warm_up_is_refused(decay):
    with pytest.raises(UserError, match=r"config\.schedule\.decay: .*give a shorter decay"):
        resolve(dataclasses.replace(WSD, decay=decay), ALONE)


def test_a_schedule_that_does_what_it_says_has_no_warnings():
    for span in (ALONE, GROWN):
        for after_growth in ("restart", "keep", "rewarm"):
            schedule = dataclasses.replace(WSD, after_growth=after_growth)
            assert warnings(resolve(schedule, span), span, grows=span is GROWN) == []


@pytest.mark.parametrize(
    ("schedule", "span", "message"),
    [
        (
            ScheduleConfig(),
            ALONE,
            "decay_end: the run ends at step 1,000 and the decay at step 300",
        ),
        (ScheduleConfig(), ALONE, "the warm-up takes 3,000 steps and the run ends at step 1,000"),
        (
            ScheduleConfig(kind="constant", warmup_steps=601, after_growth="rewarm"),
            GROWN,
            "the warm-up takes 601 steps and the run ends at step 600",
        ),
        (
            ScheduleConfig(after_growth="keep", warmup_steps=10, decay_end=1000),
            GROWN,
            "the decay began at step 10, before the growth at step 400",
        ),
        (
            ScheduleConfig("wsd", "keep", warmup_steps=10, decay_start=399, decay_end=1000),
            GROWN,
            "the decay began at step 399, before the growth",
        ),
    ],
)
def test_what_a_schedule_cannot_do_is_said(schedule, span, message):
    assert any(message in line for line in warnings(schedule, span, grows=True))


def test_a_decay_longer_than_any_run_is_a_constant_rate():
    schedule = resolve(ScheduleConfig(kind="cosine", warmup="10", decay="1000000T"), ALONE)
    assert float(learning_rate(schedule, 999)) == pytest.approx(schedule.peak)
    assert "0.0003 at 999" in describe(schedule, ALONE)


def test_the_curve_is_said_in_a_line_and_drawn():
    schedule = dataclasses.replace(resolve(WSD, ALONE), peak=1.0, final=0.0)
    assert describe(schedule, ALONE) == (
        "learning rate (wsd) by step: 0.05 at 0, 1 at 19, 1 at 900, 0.01 at 999; "
        "the stage ends at 1,000"
    )
    *rows, axis = draw(schedule, ALONE)
    heights = np.array([[cell != " " for cell in f"{row[10:]:64}"] for row in rows]).sum(0)
    rates = [learning_rate(schedule, step, 0) for step in np.linspace(0, 999, 64).round()]
    np.testing.assert_allclose(heights, np.floor(np.array(rates) * 10 + 0.5), atol=1)
    assert axis.split() == ["0", "1,000"]
