"""The saturation law fitted to the grown runs of a study (arXiv 2510.06548), with its uncertainty.

L(D1, D2) = A·D1^(−α1)·D2^(−α2 + α3·ln D1) + E, D1 tokens before growth and D2 after it. The
constants are those that `prts plan --saturation` takes.
"""

import dataclasses

import numpy as np
from scipy.optimize import least_squares

from prts_jax.errors import UserError
from prts_jax.planning.later_work import SaturationLaw
from prts_jax.study.results import Results

SETTLED = 0.25
"""Share of a grown run's tokens that is left out: the loss right after growth follows no law."""

SAMPLES = 100
"""Bootstrap samples of the constants."""

FEWEST = 3
"""Different D1 that the law needs: two exponents depend on it."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """The law's constants.

    Attributes:
      constants: fitted to all seeds.
      low: lower ends of the 95% intervals over seeds; None for one seed.
      residual: root mean square of ln L − ln of the law.
    """

    constants: SaturationLaw
    low: SaturationLaw | None
    high: SaturationLaw | None
    residual: float
    points: int

    def sentence(self) -> str:
        """Returns the constants, their intervals and the way to use them."""
        names = ("A", "α1", "α2", "α3", "E")
        parts = []
        for at, name in enumerate(names):
            interval = ""
            if self.low is not None and self.high is not None:
                interval = f" [{self.low[at]:.3g} to {self.high[at]:.3g}]"
            parts.append(f"{name} = {self.constants[at]:.4g}{interval}")
        flag = ",".join(f"{value:.4g}" for value in self.constants)
        return (
            f"The saturation law of arXiv 2510.06548 fitted to {self.points} evaluations of the "
            f"grown runs (relative residual {self.residual:.2%}; intervals over seeds): "
            f"{', '.join(parts)}. It holds for this study's model, data and range of tokens only: "
            f"prts plan --saturation={flag}."
        )


def fit(results: Results, bootstrap_seed: int = 0) -> Fit:
    """Fits the law to all arms that grow from a base; the study's bases differ in tokens.

    Raises:
      UserError: the study has fewer than three different numbers of tokens before growth.
    """
    by_seed = [_points(results, seed) for seed in results.seeds]
    by_seed = [points for points in by_seed if len(points)]
    everything = np.concatenate(by_seed) if by_seed else np.empty((0, 3))
    if len(np.unique(everything[:, 0])) < FEWEST:
        raise UserError("the grown runs start after fewer than three different numbers of tokens")
    constants = fit_points(everything)
    low = high = None
    if len(by_seed) > 1:
        random = np.random.default_rng(bootstrap_seed)
        samples = [
            fit_points(np.concatenate([by_seed[at] for at in drawn]), constants)
            for drawn in random.integers(len(by_seed), size=(SAMPLES, len(by_seed)))
        ]
        low, high = (SaturationLaw(*row) for row in np.quantile(samples, [0.025, 0.975], axis=0))
    residual = _residuals(_encode(constants), everything)
    return Fit(constants, low, high, float(np.sqrt((residual**2).mean())), len(everything))


def _points(results: Results, seed: int) -> np.ndarray:
    """Returns D1, D2 and L [n, 3] of one seed's settled evaluations after growth."""
    points = []
    for run in (arm.runs[seed] for arm in results.compared("grown") if seed in arm.runs):
        before = run.inherited("tokens")
        tokens, losses = run.curve("tokens", "validation_loss")
        if before and len(tokens):
            settled = tokens - before > SETTLED * (tokens[-1] - before)
            after = tokens[settled] - before
            points += [(before, d2, loss) for d2, loss in zip(after, losses[settled], strict=True)]
    return np.array(points, float).reshape(-1, 3)


def fit_points(points: np.ndarray, near: SaturationLaw | None = None) -> SaturationLaw:
    """Returns the least-squares constants, all at least 0, of D1, D2 and L: [n, 3].

    The search starts `near` constants; with None from several.
    """
    if near is not None:
        starts = [_encode(near)]
    else:
        lowest, slopes = points[:, 2].min(), [0.05, 0.1, 0.001]
        parts = [[lowest * part, *slopes, lowest * (1 - part)] for part in (0.2, 0.5, 0.8)]
        starts = [_scaled(np.log(part), points) for part in parts]
    fits = [
        least_squares(_residuals, start, x_scale="jac", max_nfev=200, args=(points,))
        for start in starts
    ]
    best = min(fits, key=lambda one: one.cost)
    return SaturationLaw(*np.exp(best.x))


def _scaled(start: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns the start with an A that fits the mean loss."""
    d1, d2, losses = points.T
    _, alpha1, alpha2, alpha3, e = np.exp(start)
    power = d1**-alpha1 * d2 ** -(alpha2 - alpha3 * np.log(d1))
    scaled = start.copy()
    scaled[0] = np.log(max((losses - e).mean(), 1e-6) / power.mean())
    return scaled


def _encode(constants: SaturationLaw) -> np.ndarray:
    return np.log(np.maximum(constants, 1e-300))


def _residuals(logarithms: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Returns ln of the law − ln L for the logarithms of the constants."""
    log_a, log_alpha1, log_alpha2, log_alpha3, log_e = logarithms
    alpha1, alpha2, alpha3 = np.exp(np.clip([log_alpha1, log_alpha2, log_alpha3], -50, 3))
    log_d1, log_d2 = np.log(points[:, 0]), np.log(points[:, 1])
    power = log_a - alpha1 * log_d1 - (alpha2 - alpha3 * log_d1) * log_d2
    law = np.exp(np.clip(power, -50, 50)) + np.exp(np.clip(log_e, -50, 50))
    residuals: np.ndarray = np.log(law) - np.log(points[:, 2])
    return residuals
