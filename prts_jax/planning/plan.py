"""A plan for a run that grows once: shapes, FLOPs, tokens and days, before anything is trained."""

import math
from typing import Any

from prts_jax.config import ModelConfig, to_dict
from prts_jax.errors import UserError
from prts_jax.launch import accelerators
from prts_jax.model import presets
from prts_jax.model.architecture import declare
from prts_jax.model.counts import count_parameters, training_flops_per_token
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
        for name, model in presets.PRESETS.items()
        if model.architecture == "llama" and not name.endswith("_base")
    }
    return min(sizes, key=lambda name: abs(math.log(sizes[name] / params)))


def make_plan(
    tokens: float,
    params: float | None = None,
    preset: str = "",
    length: int = 2048,
    hardware: str = "",
    mfu: float | None = None,
    t_mix: float | None = None,
    saturation: str = "",
) -> dict[str, Any]:
    """Plans a run that trains a base, stacks it once and trains the target.

    The arguments are the flags of `prts plan`; None and "" stand for their defaults.

    Returns:
      The object that `prts plan --json` prints. `flops` are of the preset's shape: `base`, `grown`
      (base included, to the loss of the run from scratch), `scratch`, and each by 6·N·D.
      `tokens_after_growth` is for equal loss (predicted) and for equal FLOPs (counted).

    Raises:
      UserError: an argument is out of range or unknown, the target's layers cannot be divided by 4,
        or equation 4 has no meaning at this size.
    """
    if not 1 <= length <= LONGEST:
        limit = "at least 1 token" if length < 1 else f"at most {LONGEST:,} tokens"
        raise UserError(f"--length={length}: a sequence has {limit}; try 2048")
    if params is None:
        if not preset:
            raise UserError("--params is missing: the target's parameters; give it or a --preset")
        params = count_parameters(declare(presets.preset(preset))).total
    growth_tokens = round(guidelines.growth_timing(params, tokens))
    chosen = preset or nearest_preset(params)
    model = presets.preset(chosen)
    target, base = _shape(model, length), _shape(guidelines.base_model(model), length)
    saving = guidelines.predicted_saving(params, tokens)
    flops, after_growth = _costs(target, base, tokens, growth_tokens, saving["speedup"])
    warnings = guidelines.outside_measurements(params, tokens, growth_tokens)
    if abs(math.log(target["params"] / params)) > math.log(1.1):
        warnings.append(
            f"preset: {chosen} has {target['params']:.3g} parameters, not {params:.3g}; shapes and "
            "FLOPs are the preset's, growth timing and saving are not"
        )
    plan = {
        "growth_tokens": growth_tokens,
        "growth_factor": guidelines.GROWTH_FACTOR,
        "params": params,
        "tokens": tokens,
        "compute": 6 * params * tokens,
        "length": length,
        "target": {"preset": chosen, "preset_given": bool(preset), **target},
        "base": base,
        "flops": flops,
        "tokens_after_growth": after_growth,
        "saving": saving,
        "hardware": _hardware(hardware, mfu, flops),
        "warnings": warnings,
    }
    return plan | {"later_work": later_work.of_plan(plan, t_mix, saturation)}


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
    target: dict[str, Any], base: dict[str, Any], tokens: float, growth_tokens: int, speedup: float
) -> tuple[dict[str, float], dict[str, int]]:
    """Returns the FLOPs of each part of the plan, and the tokens after growth."""
    per_token, per_token_6nd = target["flops_per_token"], 6 * target["params"]
    of_base = float(base["flops_per_token"] * growth_tokens)
    scratch = per_token * tokens
    grown = scratch / (1 + speedup)
    equal_loss = round((grown - of_base) / per_token)
    base_6nd = float(6 * base["params"] * growth_tokens)
    flops = {
        "base": of_base,
        "grown": grown,
        "scratch": scratch,
        "base_6nd": base_6nd,
        "grown_6nd": base_6nd + per_token_6nd * equal_loss,
        "scratch_6nd": per_token_6nd * tokens,
    }
    equal_flops = round((scratch - of_base) / per_token)
    return flops, {"equal_loss": equal_loss, "equal_flops": equal_flops}


def _hardware(name: str, mfu: float | None, flops: dict[str, float]) -> dict[str, Any] | None:
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
