"""Work after the paper, applied to a plan: each statement with its source and its range.

No number is fitted here: figures are the sources' own or counted from the plan.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from prts_jax.errors import UserError

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


def of_plan(plan: Mapping[str, Any], t_mix: float | None, constants: str) -> dict[str, Any]:
    """Returns name → {"statement", figures, "source", "range"} for a plan of `make_plan`."""
    base, target = (plan[part]["flops_per_token"] for part in ("base", "target"))
    after_growth = max(plan["tokens_after_growth"]["equal_loss"], 1)
    return {
        "base_cost": base_cost(plan["flops"]),
        "growth_factor": growth_factor(plan["params"], plan["tokens"], plan["growth_factor"]),
        "wsd": growth_under_wsd(plan["tokens"], base, target, t_mix),
        "saturation": saturation(plan["growth_tokens"], after_growth, constants),
        "counter_evidence": COUNTER_EVIDENCE,
    }


def base_cost(flops: Mapping[str, float]) -> dict[str, Any]:
    """Returns the speed-up with the base's FLOPs booked, and with the base sunk."""
    costs = flops["grown"], flops["grown"] - flops["base"]
    booked, sunk = ({"flops": cost, "speedup": flops["scratch"] / cost - 1} for cost in costs)
    return {
        "statement": f"speed-up {booked['speedup']:.1%} with the base's FLOPs booked, as the paper "
        f"does; {sunk['speedup']:.1%} with the base sunk, because it was trained for itself",
        "booked": booked,
        "sunk": sunk,
        "source": "arXiv 2405.15319",
        "range": "as the saving",
    }


def growth_factor(params: float, tokens: float, factor: int) -> dict[str, Any]:
    """Returns the advised factor: 2 beyond 20 tokens per parameter, else none."""
    ratio = tokens / params
    fades = ratio > TOKENS_PER_PARAMETER
    advice = f"gains are largest below {TOKENS_PER_PARAMETER}; {RELIABLE_FACTOR} is the most "
    advice += f"reliable factor, the paper's is {factor}"
    if fades:
        advice = f"above {TOKENS_PER_PARAMETER} the gain fades and a factor of {RELIABLE_FACTOR} "
        advice += f"is advised, not the paper's {factor}"
    return {
        "statement": f"{ratio:,.0f} tokens per parameter: {advice}; above a bound on the factor "
        "training from scratch is cheaper",
        "tokens_per_parameter": ratio,
        "advised": RELIABLE_FACTOR if fades else None,
        "source": "arXiv 2605.13405",
        "range": "dense MLPs and language models; the bound has to be measured anew for another "
        "set-up",
    }


def growth_under_wsd(tokens: float, base: float, target: float, t_mix: float | None) -> dict:
    """Returns when to grow under a warm-up-stable-decay schedule, and the FLOPs, counted.

    One growth at T − t_mix, the same learning rate before and after it. The mixing time t_mix,
    after which the grown run's loss meets that of a run from scratch, is measured in a small run.
    All are tokens but `base` and `target`: FLOPs per token.

    Raises:
      UserError: t_mix is not between 0 and `tokens`, T.
    """
    if t_mix is not None and not 0 < t_mix < tokens:
        raise UserError(
            f"--t_mix={t_mix:g}: tokens, above 0 and below --tokens; measure it in a small run"
        )
    before = GROWTH_SHARE * tokens if t_mix is None else tokens - t_mix
    flops = base * before + target * (tokens - before)
    saved = 1 - flops / (target * tokens)
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


class SaturationLaw(NamedTuple):
    """Constants of L(D1, D2) = A·D1^(−α1)·D2^(−α2 + α3·ln D1) + E for one data set and growth.

    Source: Liew and Kato, arXiv 2510.06548, fitted to growth by stacking and by width, and to
    continual pretraining, of Llamas of up to 1.1B parameters.
    """

    a: float
    alpha1: float
    alpha2: float
    alpha3: float
    e: float

    def exponent(self, d1: float) -> float:
        """Returns the exponent of D2: α2 − α3·ln D1. Where it is 0, more tokens gain nothing."""
        return self.alpha2 - self.alpha3 * math.log(d1)

    def loss(self, d1: float, d2: float) -> float:
        """Returns L in nats per token after D1 tokens of the base and D2 after growth."""
        return self.a * d1**-self.alpha1 * d2 ** -self.exponent(d1) + self.e


def saturation(d1: float, d2: float, text: str) -> dict[str, Any]:
    """Returns the law for D1 tokens of the base and D2 after growth, and its loss.

    The constants are "A,ALPHA1,ALPHA2,ALPHA3,E"; without any, the law has no figures.

    Raises:
      UserError: the text is no five constants of at least 0, or the law overflows with them.
    """
    loss = exponent = None
    source = "arXiv 2510.06548"
    value = "--saturation evaluates it with the constants of the study's table"
    if text:
        try:
            law = SaturationLaw(*map(float, text.split(",")))
            if not all(math.isfinite(constant) and constant >= 0 for constant in law):
                raise ValueError
            loss, exponent = law.loss(d1, d2), law.exponent(d1)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"--saturation={text}: the law has five constants of at least 0, A,ALPHA1,ALPHA2,"
                f"ALPHA3,E; take those of the study's table for your set-up ({source})"
            ) from error
        except OverflowError as error:
            reason = "gives no finite loss; check the constants"
            raise UserError(f"--saturation={text}: {reason}") from error
        value = f"L = {loss:.4g} and D2's exponent is {exponent:.4g} with --saturation={text}"
    return {
        "statement": "L(D1, D2) = A·D1^(−α1)·D2^(−α2 + α3·ln D1) + E: the longer the base trains "
        f"(D1), the less each token after growth (D2) gains; {value}",
        "loss": loss,
        "exponent": exponent,
        "source": source,
        "range": "Llamas of up to 1.1B parameters; the constants belong to one data set and one "
        "growth",
    }
