"""A plan for a run that grows once: shapes, FLOPs, tokens and days, before anything is trained."""

import math
from collections.abc import Mapping
from typing import Any

from prts_jax.config import ModelConfig, to_dict
from prts_jax.errors import UserError
from prts_jax.launch import accelerators
from prts_jax.model.architecture import declare
from prts_jax.model.counts import count_parameters, training_flops_per_token
from prts_jax.model.presets import PRESETS, preset
from prts_jax.planning import guidelines, later_work

DEFAULT_MFU = 0.4
"""Assumed, not measured; a run's metrics.jsonl has its measured `mfu`."""

LONGEST = 1 << 30
"""Longest sequence of a plan, in tokens: FLOPs of more would overflow."""


def nearest_preset(params: float) -> str:
    """Returns the Llama whose parameters are nearest by ratio, as the paper fitted its equations.

    Bases are no targets.
    """
    sizes = {
        name: count_parameters(declare(model)).total
        for name, model in PRESETS.items()
        if model.architecture == "llama" and not name.endswith("_base")
    }
    return min(sizes, key=lambda name: abs(math.log(sizes[name] / params)))


def make_plan(
    tokens: float,
    params: float | None = None,
    preset_name: str = "",
    length: int = 2048,
    hardware: str = "",
    mfu: float | None = None,
    t_mix: float | None = None,
    saturation: str = "",
) -> dict[str, Any]:
    """Plans a run that trains a base, stacks it once and trains the target.

    Args:
      tokens: D, tokens of the run from scratch.
      params: N of equation 4; None for the preset's own count.
      preset_name: the target's shape; "" for the one with the nearest number of parameters.
      length: tokens of a training sequence, for attention's FLOPs.
      hardware: accelerator type, such as v5p-256; "" for none.
      mfu: assumed model FLOPs utilisation on it, in (0, 1]; None for `DEFAULT_MFU`.
      t_mix: tokens of mixing time for growth under WSD; None if it is not measured.
      saturation: constants of `prts_jax.planning.saturation`; "" if none are given.

    Returns:
      The object that `prts plan --json` prints. `flops` are of the preset's shape: `base`, `grown`
      (base included, to the loss of the run from scratch), `scratch`, and each by 6·N·D.
      `tokens_after_growth` is for equal loss (predicted) and for equal FLOPs (counted).

    Raises:
      UserError: neither params nor a preset, an unknown preset or accelerator, a target whose
        layers cannot be divided by 4, or sizes at which equation 4 has no meaning.
    """
    if not 1 <= length <= LONGEST:
        limit = "at least 1 token" if length < 1 else f"at most {LONGEST:,} tokens"
        raise UserError(f"--length={length}: a sequence has {limit}; try 2048")
    if params is None:
        if not preset_name:
            raise UserError("--params is missing: the target's parameters; give it or a --preset")
        params = count_parameters(declare(preset(preset_name))).total
    growth_tokens = round(guidelines.growth_timing(params, tokens))
    chosen = preset_name or nearest_preset(params)
    model = preset(chosen)
    target, base = _shape(model, length), _shape(guidelines.base_model(model), length)
    saving = guidelines.predicted_saving(params, tokens)
    flops, after_growth = _costs(target, base, tokens, growth_tokens, saving["speedup"])
    outside = guidelines.outside_measurements(params, tokens, growth_tokens)
    plan = {
        "growth_tokens": growth_tokens,
        "growth_factor": guidelines.GROWTH_FACTOR,
        "params": params,
        "tokens": tokens,
        "compute": 6 * params * tokens,
        "length": length,
        "target": {"preset": chosen, "preset_given": bool(preset_name), **target},
        "base": base,
        "flops": flops,
        "tokens_after_growth": after_growth,
        "saving": saving,
        "hardware": _hardware(hardware, mfu, flops),
        "warnings": [*outside, *_other_size(chosen, target["params"], params)],
    }
    return plan | {"later_work": later_work.of_plan(plan, t_mix, saturation)}


def _other_size(chosen: str, own: int, params: float) -> list[str]:
    """Returns a warning if the preset's own parameters differ by more than a tenth."""
    if abs(math.log(own / params)) <= math.log(1.1):
        return []
    return [
        f"preset: {chosen} has {own:.3g} parameters, not {params:.3g}; shapes and FLOPs are the "
        "preset's, growth timing and saving are not"
    ]


def _shape(model: ModelConfig, length: int) -> dict[str, Any]:
    declarations = declare(model)
    count = count_parameters(declarations)
    return {
        **to_dict(model),
        "params": count.total,
        "non_embedding_params": count.non_embedding,
        "flops_per_token": training_flops_per_token(model, declarations, length),
    }


def _costs(
    target: Mapping[str, Any],
    base: Mapping[str, Any],
    tokens: float,
    growth_tokens: int,
    speedup: float,
) -> tuple[dict[str, float], dict[str, int]]:
    """Returns the FLOPs of each part of the plan, and the tokens after growth."""
    scratch = target["flops_per_token"] * tokens
    of_base = float(base["flops_per_token"] * growth_tokens)
    grown = scratch / (1 + speedup)
    after_growth = {
        name: round((total - of_base) / target["flops_per_token"])
        for name, total in (("equal_loss", grown), ("equal_flops", scratch))
    }
    base_6nd = float(6 * base["params"] * growth_tokens)
    flops = {
        "base": of_base,
        "grown": grown,
        "scratch": scratch,
        "base_6nd": base_6nd,
        "grown_6nd": base_6nd + 6 * target["params"] * after_growth["equal_loss"],
        "scratch_6nd": 6 * target["params"] * tokens,
    }
    return flops, after_growth


def _hardware(name: str, mfu: float | None, flops: Mapping[str, float]) -> dict[str, Any] | None:
    """Returns the slice and the days that each part of the plan takes on it; None without one."""
    if not name:
        if mfu is not None:
            raise UserError("--mfu: says nothing without --hardware; name a slice such as v5p-256")
        return None
    mfu = DEFAULT_MFU if mfu is None else mfu
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu={mfu:g}: a share of the peak, above 0 and at most 1; try 0.4")
    accelerator = accelerators.parse(name, flag="--hardware")
    generation = accelerator.generation
    per_day = accelerator.chips * generation.peak_flops * mfu * 86400
    return {
        "name": accelerator.name,
        "generation": generation.prefix,
        "chips": accelerator.chips,
        "peak_flops_per_chip": generation.peak_flops,
        "mfu": mfu,
        "days": {part: flops[part] / per_day for part in ("base", "grown", "scratch")},
    }
