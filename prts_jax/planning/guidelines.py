"""The paper's guidelines: when to grow, from what base, and what growth saves.

Source: Du et al., arXiv 2405.15319: equation 4 for the growth timing, a fixed growth factor of 4,
and the speed-ups of G_stack measured at four sizes.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from prts_jax.config import ModelConfig
from prts_jax.errors import UserError

GROWTH_FACTOR = 4
"""Copies of the base, the paper's choice. The fit in its appendix is not used: it would stack an 8B
from 24 copies and a 70B from 221."""


class Measurement(NamedTuple):
    """A speed-up that the paper measured: a base on `BASE_TOKENS`, stacked 4 times.

    `params` counts all parameters, `tokens` those of the run from scratch; `speedup` is FLOPs from
    scratch / FLOPs grown (base included) − 1, at equal loss.
    """

    name: str
    params: float
    tokens: float
    speedup: float


MEASURED = (
    Measurement("410M", 373.9e6, 400e9, 0.531),
    Measurement("1.1B", 1.3643e9, 97.7e9, 0.491),  # given as 8e20 FLOPs
    Measurement("3B", 2.3975e9, 240e9, 0.545),
    Measurement("7B", 5.9331e9, 300e9, 0.546),
)
"""Every size at which the paper measured G_stack's speed-up, smallest first."""

BASE_TOKENS = 10e9
"""Tokens of the base in every measured speed-up."""

RANGES = {
    "parameters": (MEASURED[0].params, MEASURED[3].params),
    "tokens": (MEASURED[1].tokens, MEASURED[0].tokens),
    "C = 6·N·D FLOPs": tuple(6 * m.params * m.tokens for m in (MEASURED[1], MEASURED[3])),
    "growth tokens d": (1e9, 50e9),
}
"""Smallest and largest values measured; d in the study of growth timing (410M and 1.1B)."""

ABOUT = 1.2
"""A size within this ratio counts as the paper's: its own counts of one model differ by as much,
depending on what is counted (its 7B has 5.93e9 parameters)."""

MOST_COMPUTE = 1e30
"""FLOPs beyond which equation 4 is refused: eight orders above the largest measured run."""


def growth_timing(params: float, tokens: float) -> float:
    """Returns d, the tokens to train the base on before it grows.

    Equation 4 of the paper: log10 d = 0.88·log10 N + 163.27 / log10 C − 5.74 with C = 6·N·D, for a
    target of N parameters and a run from scratch of D tokens.

    >>> round(growth_timing(params=8e9, tokens=15e12) / 1e9, 2)
    6.58

    Raises:
      UserError: params or tokens are below 1, d is below one token or at least D, or C exceeds
        `MOST_COMPUTE`.
    """
    for name, value in (("params", params), ("tokens", tokens)):
        if not (math.isfinite(value) and value >= 1):
            raise UserError(f"{name}: is {value:g}; give a count of at least 1, such as 7e9")
    # In logarithms throughout: absurd sizes would overflow before they are refused.
    log_n, log_d = math.log10(params), math.log10(tokens)
    log_c = math.log10(6) + log_n + log_d
    log_growth = 0.88 * log_n + 163.27 / log_c - 5.74
    if log_c > math.log10(MOST_COMPUTE):
        reason = f"beyond {MOST_COMPUTE:.0e} it says nothing"
    elif log_growth >= log_d:
        reason = "it would train the base on as many tokens as the run has, or more"
    elif log_growth < 0:
        reason = "it would train the base on less than a token"
    else:
        return 10**log_growth
    least, most = RANGES["C = 6·N·D FLOPs"]
    raise UserError(
        f"growth timing: for params={params:g} and tokens={tokens:g} equation 4 has no meaning "
        f"(C = 10^{log_c:.1f} FLOPs; {reason}); give a run nearer to those that the paper "
        f"measured, {least:.1e} to {most:.1e} FLOPs"
    )


def base_model(target: ModelConfig) -> ModelConfig:
    """Returns the base that G_stack grows into `target`: a quarter of its layers, all else equal.

    Raises:
      UserError: the number of layers is no multiple of the growth factor.
    """
    if target.layers < GROWTH_FACTOR or target.layers % GROWTH_FACTOR:
        raise UserError(
            f"target: has {target.layers} layers, which {GROWTH_FACTOR} copies of a base cannot "
            f"make; choose a shape whose layers are a multiple of {GROWTH_FACTOR}"
        )
    return dataclasses.replace(target, layers=target.layers // GROWTH_FACTOR)


def predicted_saving(params: float, tokens: float) -> dict[str, Any]:
    """Returns the speed-up that the paper measured at the size nearest to `params`.

    It is "measured" if the paper has a run of about this size and length, else "extrapolated".
    Nothing is fitted: the four speed-ups differ by less than the runs they come from.
    """
    nearest = min(MEASURED, key=lambda m: abs(math.log(m.params / params)))
    ratios = nearest.params / params, nearest.tokens / tokens
    is_measured = all(1 / ABOUT <= ratio <= ABOUT for ratio in ratios)
    distant = f", the nearest in size; for {params:.3g} parameters on {tokens:.3g} tokens this is "
    speedups = [measurement.speedup for measurement in MEASURED]
    return {
        "speedup": nearest.speedup,
        "flops_saved": 1 - 1 / (1 + nearest.speedup),
        "status": "measured" if is_measured else "extrapolated",
        "basis": f"the paper measured {nearest.speedup:.1%} with its {nearest.name} against "
        f"{nearest.tokens / 1e9:,.0f}B tokens from scratch (base on {BASE_TOKENS / 1e9:.0f}B "
        f"tokens, stacked {GROWTH_FACTOR} times)"
        f"{'' if is_measured else distant + 'extrapolated'}",
        "measured_range": (min(speedups), max(speedups)),
    }


def outside_measurements(params: float, tokens: float, growth_tokens: float) -> list[str]:
    """Returns a warning for each of N, D, C and d outside the paper's range by more than `ABOUT`.

    A further one if the base has a larger share of all tokens than in any measured speed-up.
    """
    values = (params, tokens, 6 * params * tokens, growth_tokens)
    lines = [
        f"{name}: {value:.3g} is outside what the paper measured, {least:.3g} to {most:.3g}"
        for (name, (least, most)), value in zip(RANGES.items(), values, strict=True)
        if not least / ABOUT <= value <= most * ABOUT
    ]
    share, measured_share = growth_tokens / tokens, max(BASE_TOKENS / m.tokens for m in MEASURED)
    if share > measured_share:
        lines.append(
            f"growth tokens d: {share:.0%} of all tokens; in the paper's measured speed-ups the "
            f"base saw at most {measured_share:.0%}"
        )
    return lines
