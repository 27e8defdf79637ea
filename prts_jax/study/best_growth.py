"""What `prts report --study --fit` fits to a study: the best d, the bound on g, the saturation law.

The first two stand beside what is published: equation 4 of arXiv 2405.15319, and arXiv 2605.13405.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from prts_jax.errors import UserError
from prts_jax.planning.guidelines import growth_timing
from prts_jax.planning.later_work import TOKENS_PER_PARAMETER
from prts_jax.study.compare import Speedup
from prts_jax.study.results import ArmResult, Results
from prts_jax.study.saturation_fit import Fit, fit

FEWEST = 3
"""Different d that a parabola needs."""

SAMPLES = 1000
"""Bootstrap samples of an interval."""


@dataclasses.dataclass(frozen=True)
class BestTokens:
    """The tokens before growth, d, whose final loss is lowest.

    Attributes:
      values: seed → d at the lowest point of the seed's parabola; None where it has none between
        the smallest and the largest d of the study.
      mean: geometric mean over seeds; None if a seed has no value.
      low: lower end of the 95% interval over seeds; None for one seed.
      equation_4: the paper's d for the scratch arm's parameters and tokens; None where it has none.
    """

    values: Mapping[int, float | None]
    tried: Sequence[float]
    mean: float | None
    low: float | None
    high: float | None
    equation_4: float | None

    def sentence(self) -> str:
        """Returns the estimate, its method, and what equation 4 says."""
        tried = f"{len(self.tried)} d from {self.tried[0]:.3g} to {self.tried[-1]:.3g} tokens"
        missing = sum(value is None for value in self.values.values())
        if self.mean is None:
            best = f"no lowest point between them in {missing} of {len(self.values)} seeds"
        elif self.low is None or self.high is None:
            best = f"lowest at d = {self.mean:.3g} (one seed)"
        else:
            best = f"lowest at d = {self.mean:.3g} [{self.low:.3g} to {self.high:.3g} over seeds]"
        paper = "has no value here" if self.equation_4 is None else f"gives {self.equation_4:.3g}"
        return (
            f"Timing: final loss over ln d, a parabola for each seed through {tried}: {best}. "
            f"Equation 4 of arXiv 2405.15319, fitted to runs a million times larger, {paper}."
        )


def best_tokens(results: Results, bootstrap_seed: int = 0) -> BestTokens:
    """Estimates the best d from the ends of the grown runs.

    Raises:
      UserError: the grown runs start after fewer than three different numbers of tokens.
    """
    by_seed = {seed: _ends(results, seed) for seed in results.seeds}
    by_seed = {seed: ends for seed, ends in by_seed.items() if ends}
    tried = sorted({d for ends in by_seed.values() for d in ends})
    if len(tried) < FEWEST:
        raise UserError("the grown runs start after fewer than three different numbers of tokens")
    values = {seed: _lowest(ends) for seed, ends in by_seed.items()}
    known = np.log([value for value in values.values() if value is not None])
    mean = low = high = None
    if len(known) == len(values):
        mean = float(np.exp(known.mean()))
        if len(known) > 1:
            drawn = np.random.default_rng(bootstrap_seed).choice(known, (SAMPLES, len(known)))
            low, high = (float(e) for e in np.exp(np.quantile(drawn.mean(1), [0.025, 0.975])))
    return BestTokens(values, tried, mean, low, high, _equation_4(results))


def _ends(results: Results, seed: int) -> dict[float, float]:
    """Returns tokens before growth → final loss of one seed's grown runs."""
    ends: dict[float, float] = {}
    for run in (arm.runs[seed] for arm in results.compared("grown") if seed in arm.runs):
        before, loss = run.inherited("tokens"), run.last("validation_loss")
        if before and loss is not None:
            ends[float(before)] = min(loss, ends.get(float(before), loss))
    return ends


def _lowest(ends: Mapping[float, float]) -> float | None:
    """Returns d at the lowest point of the least-squares parabola of the loss over ln d."""
    if len(ends) < FEWEST:
        return None
    logarithms = np.log(list(ends))
    curvature, slope, _ = np.polyfit(logarithms, list(ends.values()), 2)
    if curvature <= 0:
        return None
    lowest = -slope / (2 * curvature)
    inside = logarithms.min() <= lowest <= logarithms.max()
    return float(np.exp(lowest)) if inside else None


def _equation_4(results: Results) -> float | None:
    scratch = [arm for arm in results.compared("scratch") if arm.example is not None]
    tokens = [arm.example.last("tokens") or 0 for arm in scratch if arm.example is not None]
    try:
        return growth_timing(scratch[0].parameters, max(tokens)) if scratch else None
    except UserError:
        return None


@dataclasses.dataclass(frozen=True)
class FactorBound:
    """The growth factors whose speed-up is certain.

    Attributes:
      factors: growth factor → the speed-up's interval (mean, low, high); None where it has none.
      tokens_per_parameter: of the scratch run.
    """

    factors: Mapping[float, tuple[float, float, float] | None]
    tokens_per_parameter: float

    @property
    def certain(self) -> list[float]:
        """Factors whose 95% interval is above 0."""
        return [g for g, interval in self.factors.items() if interval and interval[1] > 0]

    def sentence(self) -> str:
        """Returns the factors that pay, the bound on g, and what is published."""
        tried = ", ".join(f"{factor:g}" for factor in self.factors)
        certain = ", ".join(f"{factor:g}" for factor in self.certain) or "none"
        best = max(
            (factor for factor in self.certain),
            key=lambda factor: (self.factors[factor] or (0.0,))[0],
            default=None,
        )
        fastest = "" if best is None else f", fastest with g = {best:g}"
        return (
            f"Growth factors: of g = {tried} tried at {self.tokens_per_parameter:.2g} tokens a "
            f"parameter, these save FLOPs with a 95% interval above 0: {certain}{fastest}. "
            "arXiv 2605.13405: g = 2 is the most reliable, and gains fade above "
            f"{TOKENS_PER_PARAMETER} tokens a parameter."
        )


def factor_bound(results: Results, by_arm: Mapping[str, Speedup]) -> FactorBound:
    """Returns which growth factors pay, of a study whose grown arms differ in the factor.

    Raises:
      UserError: the grown arms have fewer than two different factors of depth.
    """
    arms: dict[float, ArmResult] = {}
    for arm in results.compared("grown"):
        factor = arm.depth_factor()
        if factor and factor > 1:
            arms.setdefault(factor, arm)
    if len(arms) < 2:
        raise UserError("the grown runs have fewer than two different growth factors in depth")
    intervals = {}
    for factor in sorted(arms):
        booked = by_arm[arms[factor].name].booked
        whole = booked.mean is not None and booked.low is not None and booked.high is not None
        intervals[factor] = (booked.mean, booked.low, booked.high) if whole else None
    rates = [arm.tokens_per_parameter() or 0.0 for arm in results.compared("scratch")]
    return FactorBound(intervals, max(rates, default=0.0))  # type: ignore[arg-type]


Fitted = Fit | BestTokens | FactorBound


def fit_all(results: Results, by_arm: Mapping[str, Speedup]) -> dict[str, Fitted]:
    """Returns name → fit of every fit that the study has the runs for.

    Raises:
      UserError: it has the runs for none; with the reasons.
    """
    fitters: dict[str, Callable[[], Fitted]] = {
        "saturation": lambda: fit(results),
        "timing": lambda: best_tokens(results),
        "factor": lambda: factor_bound(results, by_arm),
    }
    fitted, reasons = {}, []
    for name, fitter in fitters.items():
        try:
            fitted[name] = fitter()
        except UserError as error:
            reasons.append(f"{name}: {error}")
    if not fitted:
        raise UserError(
            f"--fit: nothing to fit ({'; '.join(reasons)}); see configs/study/timing.py and "
            "configs/study/factor.py"
        )
    return fitted
