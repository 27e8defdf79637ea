"""The bound on the growth factor, and the advice g = 2 beyond 20 tokens per parameter.

Source: "When is Warmstarting Effective for Scaling Language Models?", arXiv 2605.13405.
"""

from typing import Any

SOURCE = "arXiv 2605.13405"
RANGE = "dense MLPs and language models; the bound has to be measured anew for another set-up"

RELIABLE = 2
"""The growth factor that sped up training most reliably."""

TOKENS_PER_PARAMETER = 20
"""Gains are largest below this budget and fade above it."""


def advice(params: float, tokens: float, factor: int) -> dict[str, Any]:
    """Returns the advised factor: 2 beyond 20 tokens per parameter, else none.

    Args:
      params: N, the target's parameters.
      tokens: D, tokens of the run from scratch.
      factor: the plan's growth factor.
    """
    ratio = tokens / params
    fades = ratio > TOKENS_PER_PARAMETER
    statement = (
        f"{ratio:,.0f} tokens per parameter: "
        + (
            f"above {TOKENS_PER_PARAMETER} the gain fades and a factor of {RELIABLE} is advised, "
            f"not the paper's {factor}"
            if fades
            else f"gains are largest below {TOKENS_PER_PARAMETER}; {RELIABLE} is the most reliable "
            f"factor, the paper's is {factor}"
        )
        + "; above a bound on the factor training from scratch is cheaper"
    )
    return {
        "statement": statement,
        "tokens_per_parameter": ratio,
        "advised": RELIABLE if fades else None,
    }
