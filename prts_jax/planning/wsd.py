"""Growth in the stable phase of a warm-up-stable-decay schedule (WSD), at T − t_mix.

Source: arXiv 2511.04981 v2: one growth at about 0.8·T, the same learning rate before and after it,
warm-up over 2% and decay over the last 10%. The mixing time t_mix, after which the grown run's loss
meets that of a run from scratch, is measured in a small run.
"""

from typing import Any

from prts_jax.errors import UserError

SOURCE = "arXiv 2511.04981"
RANGE = "124M and 7B, with bases of no or one layer: loss gaps below 0.5% and 0.2%"

GROWTH_SHARE = 0.8
"""Share of the tokens before growth in the study, where t_mix is not measured."""


def advice(
    tokens: float, base_flops_per_token: float, target_flops_per_token: float, t_mix: float | None
) -> dict[str, Any]:
    """Returns when to grow under WSD, and the FLOPs, counted and not predicted.

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
    }
