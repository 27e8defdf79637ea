"""Work after the paper, applied to a plan: each statement with its source and its range.

No number is fitted here: figures are the sources' own or counted from the plan.
"""

from collections.abc import Mapping
from typing import Any

from prts_jax.planning import growth_factor, saturation, wsd

COUNTER_EVIDENCE = {
    "statement": "full depth with half the updates and its own finished schedule reached loss "
    "2.058 at 1.93 times the speed; growth from 1 to 48 layers reached 2.135 at 2.06 times: "
    "compare with runs from scratch at several budgets, each with a finished schedule",
    "source": "marin-community/marin #7838",
    "range": "a 46B mixture of experts, growth factors 12 to 48, one seed",
}
"""The evidence against growing at all."""


def of_plan(plan: Mapping[str, Any], t_mix: float | None, constants: str) -> dict[str, Any]:
    """Returns name → {"statement", "source", "range", figures} for a plan.

    Args:
      plan: from `prts_jax.planning.plan.make_plan`.
      t_mix: mixing time in tokens; None if it is not measured.
      constants: of the saturation law; "" if none are given.

    Raises:
      UserError: t_mix or the constants do not fit.
    """
    base, target = (plan[part]["flops_per_token"] for part in ("base", "target"))
    after_growth = plan["tokens_after_growth"]["equal_loss"]
    advices = {
        "growth_factor": (
            growth_factor,
            growth_factor.advice(plan["params"], plan["tokens"], plan["growth_factor"]),
        ),
        "wsd": (wsd, wsd.advice(plan["tokens"], base, target, t_mix)),
        "saturation": (
            saturation,
            saturation.advice(plan["growth_tokens"], max(after_growth, 1), constants),
        ),
    }
    stated = {
        name: {**advice, "source": law.SOURCE, "range": law.RANGE}
        for name, (law, advice) in advices.items()
    }
    return {"base_cost": base_cost(plan), **stated, "counter_evidence": COUNTER_EVIDENCE}


def base_cost(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the speed-up with the base's FLOPs booked, and with the base sunk."""
    flops = plan["flops"]
    booked, sunk = flops["grown"], flops["grown"] - flops["base"]
    speedups = [flops["scratch"] / cost - 1 for cost in (booked, sunk)]
    return {
        "statement": f"speed-up {speedups[0]:.1%} with the base's FLOPs booked, as the paper does; "
        f"{speedups[1]:.1%} with the base sunk, because it was trained for itself",
        "booked": {"flops": booked, "speedup": speedups[0]},
        "sunk": {"flops": sunk, "speedup": speedups[1]},
        "source": "arXiv 2405.15319",
        "range": "as the saving",
    }
