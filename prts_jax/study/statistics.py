"""Speed-up at equal loss with an interval: monotone fits and a bootstrap over seeds and blocks."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.stats import kendalltau

from prts_jax.report.speedup import first_crossing

SAMPLES = 1000
"""Bootstrap samples of an interval."""

METHOD = (
    "Speed-up at a loss ℓ = FLOPs(scratch, ℓ) / FLOPs(method, ℓ) − 1, the base's FLOPs included. "
    "A curve is the non-increasing least-squares fit (isotonic regression) of validation loss over "
    "FLOPs; FLOPs(curve, ℓ) is where the fit first is ℓ or lower, linear in log FLOPs between two "
    "points. Nothing is extrapolated. Where scratch does not reach ℓ, it is more (>) than with "
    "scratch's last FLOPs in the formula; where a method does not, or scratch is there at its "
    "first point, it is less (<) than with these. The k-th seed of a method is compared with the "
    "k-th seed of scratch, which reads the same data. "
    f"Intervals are the 2.5% and 97.5% quantiles of the mean over seeds in {SAMPLES:,} bootstrap "
    "samples, which draw seeds and blocks of the validation text with replacement; both runs of a "
    "pair are evaluated on the drawn blocks. Three seeds make such an interval too narrow rather "
    "than too wide."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """Validation losses over FLOPs: the evaluations of one run, or the ends of several.

    Attributes:
      flops: [n] rising, total FLOPs, ancestors included.
      losses: [n, blocks] nats per token of equal parts of the validation text; one block if only
        the mean is known.
    """

    flops: np.ndarray
    losses: np.ndarray

    def fit(self, blocks: np.ndarray | None = None) -> np.ndarray:
        """Returns the non-increasing fit [n] of the mean loss over `blocks`, or over all."""
        chosen = self.losses if blocks is None else self.losses[:, blocks]
        fitted: np.ndarray = isotonic_regression(chosen.mean(axis=1), increasing=False).x
        return fitted


def flops_at(flops: np.ndarray, fit: np.ndarray, level: float) -> float | None:
    """Returns the FLOPs at which a fit first is `level` or lower; None if it never is.

    FLOPs [n] rise, losses of the fit [n] do not. Interpolates linearly in log FLOPs.
    """
    crossing = first_crossing(np.log(flops), fit, level)
    return None if crossing is None else math.exp(crossing)


def speedup(
    scratch: Curve, method: Curve, finished: bool, blocks: np.ndarray | None = None
) -> float | None:
    """Returns FLOPs(scratch, ℓ) / FLOPs(method, ℓ) − 1 of one seed; None if only a bound is known.

    The arguments are those of `bounds`.
    """
    low, high = bounds(scratch, method, finished, blocks)
    return low if low == high else None


def bounds(
    scratch: Curve, method: Curve, finished: bool, blocks: np.ndarray | None = None
) -> tuple[float | None, float | None]:
    """Returns the lowest and the highest speed-up that one seed's curves allow.

    Args:
      scratch: evaluations of the scratch run; if `finished`, the ends of scratch runs of several
        budgets, each with a schedule of its own.
      method: evaluations of the method; if `finished`, its end.
      finished: whether only finished runs are comparable. Then ℓ is the method's loss at its end,
        otherwise scratch's at its end.
      blocks: columns of the losses to average; None for all.

    Returns:
      Twice the speed-up where both curves reach ℓ. No highest one (None) where scratch does not.
      No lowest one where the method does not, or where scratch's first point is there already, so
      that its FLOPs are only known to be no more.
    """
    of_scratch, of_method = scratch.fit(blocks), method.fit(blocks)
    level = of_method[-1] if finished else of_scratch[-1]
    theirs = flops_at(scratch.flops, of_scratch, level)
    ours = flops_at(method.flops, of_method, level)
    most_of_ours = method.flops[-1] if ours is None else ours
    if theirs is None:
        return float(scratch.flops[-1] / most_of_ours - 1), None
    ratio = float(theirs / most_of_ours - 1)
    known = ours is not None and of_scratch[0] > level
    return (ratio if known else None), ratio


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A speed-up over seeds.

    Attributes:
      values: by seed; None where the loss is not reached.
      mean: over seeds; None if a seed has no value.
      low: lower end of the 95% interval; None if unknown.
      at_least: where there is no mean, what it cannot be below; None if unknown.
    """

    values: Sequence[float | None]
    mean: float | None
    low: float | None
    high: float | None
    at_least: float | None = None
    at_most: float | None = None

    @property
    def missing(self) -> int:
        """Number of seeds without a value."""
        return sum(value is None for value in self.values)


def estimate(
    pairs: Sequence[tuple[Curve, Curve] | None], finished: bool, seed: int = 0
) -> Estimate:
    """Returns the mean speed-up over seeds and its 95% bootstrap interval.

    Args:
      pairs: (scratch, method) of each seed, all with equal numbers of blocks; None where one of
        the two has no finished run.
      finished: see `speedup`.
      seed: of the bootstrap.

    Returns:
      An estimate without mean if a seed does not reach the loss, and without interval for a single
      seed or if one sample in forty or more does not reach it.
    """
    curves = [pair for pair in pairs if pair is not None]
    limits = [(None, None) if pair is None else bounds(*pair, finished) for pair in pairs]
    values = [low if low == high else None for low, high in limits]
    known = [value for value in values if value is not None]
    if not values or len(known) < len(values):
        at_least, at_most = map(_mean, zip(*limits, strict=True)) if limits else (None, None)
        return Estimate(values, None, None, None, at_least, at_most)
    mean = float(np.mean(known))
    if len(pairs) < 2:
        return Estimate(values, mean, None, None)
    random = np.random.default_rng(seed)
    blocks = min(curve.losses.shape[1] for pair in curves for curve in pair)
    means = []
    for _ in range(SAMPLES):
        drawn = random.integers(blocks, size=blocks)
        seeds = random.integers(len(pairs), size=len(pairs))
        sample = [speedup(scratch, method, finished, drawn) for scratch, method in curves]
        of_seeds = [sample[at] for at in seeds]
        reached = [value for value in of_seeds if value is not None]
        if len(reached) == len(of_seeds):
            means.append(float(np.mean(reached)))
    if len(means) <= SAMPLES * 39 // 40:
        return Estimate(values, mean, None, None)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(values, mean, float(low), float(high))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def rank_agreement(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Returns Kendall's τ of two lists of losses; None for fewer than two or all equal."""
    if len(ours) < 2:
        return None
    tau = float(kendalltau(ours, theirs).statistic)
    return None if math.isnan(tau) else tau
