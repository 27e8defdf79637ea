"""All that `prts report --study --fit` can fit to a study."""

from collections.abc import Callable, Mapping

from prts_jax.errors import UserError
from prts_jax.study.best_growth import BestTokens, FactorBound, best_tokens, factor_bound
from prts_jax.study.compare import Speedup
from prts_jax.study.results import Results
from prts_jax.study.saturation_fit import Fit, fit

Fitted = Fit | BestTokens | FactorBound


def fit_all(results: Results, by_arm: Mapping[str, Speedup]) -> dict[str, Fitted]:
    """Returns name → fit of every fit that the study has the runs for.

    Args:
      results: of the study.
      by_arm: from `compare.speedups`.

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
