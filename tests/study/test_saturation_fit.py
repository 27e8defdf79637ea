"""The saturation law is fitted to runs that follow it exactly, and to some that nearly do."""

import numpy as np
import pytest

from prts_jax.errors import UserError
from prts_jax.planning.later_work import SaturationLaw
from prts_jax.report.runs import Run
from prts_jax.study.results import ArmResult, Results
from prts_jax.study.saturation_fit import fit

LAW = SaturationLaw(40.0, 0.08, 0.2, 0.004, 1.7)


def results(d1s: list[float], noise: float, seeds: int = 3) -> Results:
    """Returns a study whose grown runs follow the law."""
    random = np.random.default_rng(0)

    def run(d1: float) -> Run:
        rows = [{"step": 0, "stage_step": 0, "tokens": d1, "flops": d1}]
        for step, d2 in enumerate(np.geomspace(1e7, 3e9, 24), 1):
            loss = LAW.loss(d1, d2) * np.exp(noise * random.standard_normal())
            rows.append({"step": step, "stage_step": step, "tokens": d1 + d2})
            rows[-1] |= {"flops": d1 + d2, "validation_loss": float(loss)}
        return Run("grown", "grown", {}, rows, "finished")

    arms = [
        ArmResult(f"after-{d1}", "grown", 1e-3, 10**8, None, {k: run(d1) for k in range(seeds)})
        for d1 in d1s
    ]
    return Results("When?", False, list(range(seeds)), arms)


def test_a_study_that_follows_the_law_gives_its_losses_back():
    fitted = fit(results([1e7, 1e8, 1e9, 4e9], noise=0.0)).constants
    for d1, d2 in ((2e7, 1e9), (5e8, 3e8), (4e9, 4e9)):
        assert fitted.loss(d1, d2) == pytest.approx(LAW.loss(d1, d2), rel=1e-3)
    assert fitted.exponent(1e8) == pytest.approx(LAW.exponent(1e8), rel=0.05)


def test_noise_widens_the_intervals():
    fits = [fit(results([1e7, 1e8, 1e9, 4e9], noise)) for noise in (1e-4, 1e-2)]
    assert all(one.low is not None for one in fits)
    assert all(one.high is not None for one in fits)
    widths = [np.subtract(one.high, one.low) for one in fits]  # type: ignore[arg-type]
    assert widths[0][4] < widths[1][4]
    assert fits[1].residual == pytest.approx(1e-2, rel=0.2)
    assert "prts plan --saturation=" in fits[0].sentence()


def test_too_few_bases_are_refused():
    with pytest.raises(UserError, match="fewer than three"):
        fit(results([1e7, 1e8], noise=0.0))
