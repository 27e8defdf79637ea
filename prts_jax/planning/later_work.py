"""Work after the paper, applied to a plan: each statement with its source and its range.

No number is fitted here: figures are the sources' own or counted from the plan.
"""

from collections.abc import Mapping
from typing import Any

from prts_jax.errors import UserError
from prts_jax.planning import saturation

RELIABLE_FACTOR = 2
"""The growth factor that sped up training most reliably, by arXiv 2605.13405."""

TOKENS_PER_PARAMETER = 20
"""Its gains are largest below this budget and fade above it."""

GROWTH_SHARE = 0.8
"""Share of the tokens before growth in arXiv 2511.04981, where t_mix is not measured."""

COUNTER_EVIDENCE = {
    "statement": "full depth with half the updates and its own finished schedule reached loss "
    "2.058 at 1.93 times the speed; growth from 1 to 48 layers reached 2.135 at 2.06 times: "
    "compare with runs from scratch at several budgets, each with a finished schedule",
    "source": "marin-community/marin #7838",
    "range": "a 46B mixture of experts, growth factors 12 to 48, one seed",
}
"""The evidence against growing at all."""


def of_plan(plan: Mapping[str, Any], t_mix: float | None, constants: str) -> dict[str, Any]:
    """Returns name → {"statement", figures, "source", "range"} for a plan.

    Args:
      plan: from `prts_jax.planning.plan.make_plan`.
      t_mix: mixing time in tokens; None if it is not measured.
      constants: of the saturation law; "" if none are given.

    Raises:
      UserError: t_mix or the constants do not fit.
    """
    base, target = (plan[part]["flops_per_token"] for part in ("base", "target"))
    after_growth = max(plan["tokens_after_growth"]["equal_loss"], 1)
    return {
        "base_cost": base_cost(plan["flops"]),
        "growth_factor": growth_factor(plan["params"], plan["tokens"], plan["growth_factor"]),
        "wsd": growth_under_wsd(plan["tokens"], base, target, t_mix),
        "saturation": saturation.advice(plan["growth_tokens"], after_growth, constants),
        "counter_evidence": COUNTER_EVIDENCE,
    }


def base_cost(flops: Mapping[str, float]) -> dict[str, Any]:
    """Returns the speed-up with the base's FLOPs booked, and with the base sunk."""
    costs = {"booked": flops["grown"], "sunk": flops["grown"] - flops["base"]}
    parts = {
        name: {"flops": cost, "speedup": flops["scratch"] / cost - 1}
        for name, cost in costs.items()
    }
    booked, sunk = (part["speedup"] for part in parts.values())
    return {
        "statement": f"speed-up {booked:.1%} with the base's FLOPs booked, as the paper does; "
        f"{sunk:.1%} with the base sunk, because it was trained for itself",
        **parts,
        "source": "arXiv 2405.15319",
        "range": "as the saving",
    }


def growth_factor(params: float, tokens: float, factor: int) -> dict[str, Any]:
    """Returns the advised factor: 2 beyond 20 tokens per parameter, else none.

    Args:
      params: N, the target's parameters.
      tokens: D, tokens of the run from scratch.
      factor: the plan's growth factor.
    """
    ratio = tokens / params
    fades = ratio > TOKENS_PER_PARAMETER
    advice = (
        f"above {TOKENS_PER_PARAMETER} the gain fades and a factor of {RELIABLE_FACTOR} is "
        f"advised, not the paper's {factor}"
        if fades
        else f"gains are largest below {TOKENS_PER_PARAMETER}; {RELIABLE_FACTOR} is the most "
        f"reliable factor, the paper's is {factor}"
    )
    return {
        "statement": f"{ratio:,.0f} tokens per parameter: {advice}; above a bound on the factor "
        "training from scratch is cheaper",
        "tokens_per_parameter": ratio,
        "advised": RELIABLE_FACTOR if fades else None,
        "source": "arXiv 2605.13405",
        "range": "dense MLPs and language models; the bound has to be measured anew for another "
        "set-up",
    }


def growth_under_wsd(
    tokens: float, base_flops_per_token: float, target_flops_per_token: float, t_mix: float | None
) -> dict[str, Any]:
    """Returns when to grow under a warm-up-stable-decay schedule, and the FLOPs, counted.

    One growth at T − t_mix, the same learning rate before and after it. The mixing time t_mix,
    after which the grown run's loss meets that of a run from scratch, is measured in a small run.

    Args:
      tokens: T, all tokens of the run.
      base_flops_per_token: of the base.
      target_flops_per_token: of the target.
      t_mix: mixing time in tokens; None if it is not measured.

    Raises:
      UserError: t_mix is not between 0 and T.
    """
    if t_mix is not None and not 0 < t_mix < tokens:
        raise UserError(
            f"--t_mix={t_mix:g}: tokens, above 0 and below --tokens; measure it in a small run"
        )
    before = GROWTH_SHARE * tokens if t_mix is None else tokens - t_mix
    flops = base_flops_per_token * before + target_flops_per_token * (tokens - before)
    saved = 1 - flops / (target_flops_per_token * tokens)
    basis = f"{GROWTH_SHARE}·T (t_mix is not measured)" if t_mix is None else "T − t_mix"
    return {
        "statement": f"one growth in the stable phase at {basis} = {before / 1e9:,.4g}B tokens, "
        "the same learning rate before and after, 10% decay at the end: "
        f"{flops:.3e} FLOPs, {saved:.1%} fewer, counted for this base and T tokens in all; a "
        "cosine schedule cannot mix where growth comes after 0.5·T",
        "growth_tokens": round(before),
        "flops": flops,
        "flops_saved": saved,
        "source": "arXiv 2511.04981",
        "range": "124M and 7B, with bases of no or one layer: loss gaps below 0.5% and 0.2%",
    }
