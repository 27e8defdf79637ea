"""The best d and the bound on g, of studies with a known answer."""

import numpy as np
import pytest

from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.report.runs import Run
from prts_jax.study.best_growth import best_tokens, factor_bound, fit_all
from prts_jax.study.compare import Speedup
from prts_jax.study.results import ArmResult, Results
from prts_jax.study.statistics import Estimate

BEST = 3e7
SHAPE = {"vocab": 64, "embed": 16, "heads": 2, "kv_heads": 2, "head_dim": 8, "mlp": 32}


def when(d1s, lowest, seeds=3):
    """Returns a study whose final losses are a parabola of ln d with its lowest point there."""

    def run(d1, seed):
        loss = 2 + 0.02 * (np.log(d1) - np.log(lowest * (1 + 0.01 * seed))) ** 2
        rows = [{"step": 0, "stage_step": 0, "tokens": d1, "flops": d1}]
        rows.append({"step": 9, "stage_step": 9, "tokens": 1e9, "flops": 1e9})
        rows[-1]["validation_loss"] = float(loss)
        return Run("grown", "grown", {}, rows, "finished")

    arms = [
        ArmResult(f"after-{d}", "grown", 1e-3, 10, None, {k: run(d, k) for k in range(seeds)})
        for d in d1s
    ]
    return Results("When?", False, list(range(seeds)), arms)


def test_the_lowest_point_of_a_parabola_is_the_best_d():
    best = best_tokens(when([1e7, 2e7, 4e7, 8e7], BEST))
    assert best.mean == pytest.approx(BEST * 1.01, rel=1e-3)
    assert BEST <= best.low <= best.mean <= best.high <= BEST * 1.02 + 1
    assert best.values[0] == pytest.approx(BEST, rel=1e-6)
    assert "lowest at d = 3.03e+07 [" in best.sentence()


@pytest.mark.parametrize("lowest", [1e6, 1e9])
def test_a_lowest_point_outside_the_d_that_were_tried_is_not_extrapolated(lowest):
    best = best_tokens(when([1e7, 2e7, 4e7], lowest))
    assert best.mean is None
    assert "no lowest point between them in 3 of 3 seeds" in best.sentence()


def test_two_d_are_too_few():
    with pytest.raises(UserError, match="fewer than three"):
        best_tokens(when([1e7, 2e7], BEST))


def how_much(intervals):
    """Returns a study of growth factors and its speed-ups, given as (mean, low, high)."""
    arms, by_arm = [], {}
    rows = [{"step": 9, "tokens": 200.0, "flops": 1.0, "validation_loss": 2.0}]
    scratch = Run("scratch", "scratch", {}, rows, "finished")
    arms.append(ArmResult("scratch", "scratch", 1e-3, 10, None, {0: scratch}))
    for factor, (mean, low, high) in intervals.items():
        source, target = ModelConfig(layers=2, **SHAPE), ModelConfig(layers=2 * factor, **SHAPE)
        grown = GrowthMap("stack", {}, source, target, (0, 1) * factor)
        record = [{"growth": {"map": grown.to_json()}}, *rows]
        run = Run("grown", "grown", {}, record, "finished")
        arms.append(ArmResult(f"by-{factor}", "grown", 1e-3, 10, None, {0: run}))
        estimate = Estimate([mean], mean, low, high)
        by_arm[f"by-{factor}"] = Speedup(estimate, estimate)
    return Results("How much?", False, [0], arms), by_arm


def test_factors_whose_interval_is_above_zero_pay():
    results, by_arm = how_much(
        {2: (0.2, 0.1, 0.3), 4: (0.3, 0.05, 0.5), 8: (0.1, -0.1, 0.2), 16: (None, None, None)}
    )
    bound = factor_bound(results, by_arm)
    assert bound.certain == [2, 4]
    assert bound.factors[16] is None
    assert bound.tokens_per_parameter == 20
    assert "above 0: 2, 4, fastest with g = 4." in bound.sentence()


def test_all_that_a_study_has_runs_for_is_fitted_and_nothing_is_refused_by_name():
    results, by_arm = how_much({2: (0.2, 0.1, 0.3), 4: (0.3, 0.05, 0.5)})
    assert list(fit_all(results, by_arm)) == ["factor"]
    assert "timing" in fit_all(when([1e7, 2e7, 4e7, 8e7], BEST), {})
    with pytest.raises(UserError, match="nothing to fit .*timing.py"):
        fit_all(when([1e7], BEST), {})
