"""A plan for a run that grows once: shapes, FLOPs, tokens and days, before anything is trained."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax import config
from prts_jax.config import ModelConfig
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.launch import accelerators
from prts_jax.model.counts import count_parameters, six_n_d_per_token, training_flops_per_token
from prts_jax.model.presets import PRESETS, preset
from prts_jax.planning.guidelines import (
    GROWTH_FACTOR,
    Saving,
    base_model,
    growth_timing,
    outside_measurements,
    predicted_saving,
)
from prts_jax.planning.peaks import PEAK_FLOPS_PER_CHIP

DEFAULT_MFU = 0.4
"""Assumed, not measured: what a run's metrics.jsonl says of `mfu` is better."""

SECONDS_PER_DAY = 86400

Declare = Callable[[ModelConfig], Mapping[str, Declaration]]
"""`prts_jax.model.architecture.declare`: handed in, so that growth depends on no framework."""


@dataclass(frozen=True)
class Shape:
    """A model, and what it counts.

    Attributes:
      model: its shape.
      params: all parameters.
      non_embedding: without token embedding and head; the growth factor is of these.
      flops_per_token: of training, by `prts_jax.model.counts`.
      six_n: 6 · params, FLOPs of a token by the common estimate.
    """

    model: ModelConfig
    params: int
    non_embedding: int
    flops_per_token: int
    six_n: int


@dataclass(frozen=True)
class Flops:
    """Training FLOPs by the project's count, and by 6·N·D beside it.

    `grown` is the whole grown run up to the predicted loss of the run from scratch: its base
    included. All are of the preset's shape.
    """

    base: float
    grown: float
    scratch: float
    base_6nd: float
    grown_6nd: float
    scratch_6nd: float


@dataclass(frozen=True)
class TokensAfterGrowth:
    """How long the grown model trains.

    Attributes:
      equal_loss: until it has the loss that the run from scratch ends with (predicted).
      equal_flops: until it has cost what the run from scratch costs (counted, not predicted).
    """

    equal_loss: int
    equal_flops: int


@dataclass(frozen=True)
class Hardware:
    """A slice of TPUs, and days of each part of the plan on it at an assumed MFU."""

    name: str
    generation: str
    chips: int
    peak_flops_per_chip: float
    mfu: float
    days: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """A plan for one hop: train the base, stack it, train the target.

    Attributes:
      params: N of equation 4.
      tokens: D, what the run from scratch would be trained on.
      compute: C = 6·N·D, FLOPs.
      length: tokens of a training sequence, for attention's FLOPs.
      growth_tokens: d, what the base is trained on.
      preset: name of the target's shape.
      preset_given: whether it was asked for; else it is the nearest by parameters.
      target, base: shapes.
      flops, after_growth, saving: see their classes.
      hardware: None where none was named.
      warnings: where the plan leaves what the paper measured.
    """

    params: float
    tokens: float
    compute: float
    length: int
    growth_tokens: int
    preset: str
    preset_given: bool
    target: Shape
    base: Shape
    flops: Flops
    after_growth: TokensAfterGrowth
    saving: Saving
    hardware: Hardware | None
    warnings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns what `prts plan --json` prints."""
        return {
            "growth_tokens": self.growth_tokens,
            "growth_factor": GROWTH_FACTOR,
            "params": self.params,
            "tokens": self.tokens,
            "compute": self.compute,
            "length": self.length,
            "target": {
                "preset": self.preset,
                "preset_given": self.preset_given,
                **_shape_json(self.target),
            },
            "base": _shape_json(self.base),
            "flops": dataclasses.asdict(self.flops),
            "tokens_after_growth": dataclasses.asdict(self.after_growth),
            "saving": dataclasses.asdict(self.saving),
            "hardware": dataclasses.asdict(self.hardware) if self.hardware else None,
            "warnings": list(self.warnings),
        }


def nearest_preset(params: float, declare: Declare) -> str:
    """Returns the preset whose parameters are nearest by ratio; bases are no targets."""
    sizes = {
        name: count_parameters(declare(model)).total
        for name, model in PRESETS.items()
        if not name.endswith("_base")
    }
    return min(sizes, key=lambda name: abs(math.log(sizes[name] / params)))


def make_plan(
    declare: Declare,
    tokens: float,
    params: float | None = None,
    preset_name: str = "",
    length: int = 2048,
    hardware: str = "",
    mfu: float = DEFAULT_MFU,
) -> Plan:
    """Plans a run that grows once.

    Args:
      declare: `prts_jax.model.architecture.declare`.
      tokens: D, what the run from scratch would be trained on.
      params: N of equation 4; None takes the preset's.
      preset_name: the target's shape; "" takes the one with the nearest number of parameters.
      length: tokens of a training sequence.
      hardware: accelerator type, such as v5p-256; "" for none.
      mfu: model FLOPs utilisation to assume on it, in (0, 1].

    Raises:
      UserError: neither params nor a preset, an unknown preset or accelerator, a target whose
        layers cannot be divided by 4, or sizes at which equation 4 has no meaning.
    """
    if length < 1:
        raise UserError(f"--length={length}: a sequence has at least 1 token; give 2048, say")
    if params is None and not preset_name:
        raise UserError("--params is missing: the target's parameters; give it or a --preset")
    target = None
    if params is None:
        target = _shape(preset(preset_name), declare, length)
        params = target.params
    growth_tokens = round(growth_timing(params, tokens))
    chosen = preset_name or nearest_preset(params, declare)
    target = target or _shape(preset(chosen), declare, length)
    base = _shape(base_model(target.model), declare, length)
    saving = predicted_saving(params, tokens)
    flops, after = _costs(base, target, growth_tokens, tokens, saving)
    return Plan(
        params=params,
        tokens=tokens,
        compute=6 * params * tokens,
        length=length,
        growth_tokens=growth_tokens,
        preset=chosen,
        preset_given=bool(preset_name),
        target=target,
        base=base,
        flops=flops,
        after_growth=after,
        saving=saving,
        hardware=_hardware(hardware, mfu, flops) if hardware else None,
        warnings=(
            *outside_measurements(params, tokens, growth_tokens),
            *_preset_warnings(chosen, target, params),
        ),
    )


def _shape(model: ModelConfig, declare: Declare, length: int) -> Shape:
    declarations = declare(model)
    count = count_parameters(declarations)
    return Shape(
        model=model,
        params=count.total,
        non_embedding=count.non_embedding,
        flops_per_token=training_flops_per_token(model, declarations, length),
        six_n=six_n_d_per_token(declarations),
    )


def _costs(
    base: Shape, target: Shape, growth_tokens: int, tokens: float, saving: Saving
) -> tuple[Flops, TokensAfterGrowth]:
    spent = float(base.flops_per_token * growth_tokens)
    scratch = target.flops_per_token * tokens
    grown = scratch / (1 + saving.speedup)
    after = TokensAfterGrowth(
        equal_loss=round((grown - spent) / target.flops_per_token),
        equal_flops=round((scratch - spent) / target.flops_per_token),
    )
    spent_6nd = float(base.six_n * growth_tokens)
    flops = Flops(
        base=spent,
        grown=grown,
        scratch=scratch,
        base_6nd=spent_6nd,
        grown_6nd=spent_6nd + target.six_n * after.equal_loss,
        scratch_6nd=target.six_n * tokens,
    )
    return flops, after


def _hardware(name: str, mfu: float, flops: Flops) -> Hardware:
    if not 0 < mfu <= 1:
        raise UserError(f"--mfu={mfu:g}: a share of the peak, above 0 and at most 1; give 0.4, say")
    prefix = name.partition("-")[0]
    known = (*accelerators.GENERATIONS, *accelerators.ALIASES)
    if "-" in name and prefix not in known:
        raise UserError(
            f"--hardware={name}: {prefix!r} is unknown; {config.nearest(prefix, known)}"
        )
    accelerator = accelerators.parse(name, flag="--hardware")
    peak = PEAK_FLOPS_PER_CHIP[accelerator.generation.prefix]
    per_day = accelerator.chips * peak * mfu * SECONDS_PER_DAY
    return Hardware(
        name=accelerator.name,
        generation=accelerator.generation.prefix,
        chips=accelerator.chips,
        peak_flops_per_chip=peak,
        mfu=mfu,
        days={part: getattr(flops, part) / per_day for part in ("base", "grown", "scratch")},
    )


def _preset_warnings(name: str, target: Shape, params: float) -> list[str]:
    if abs(math.log(target.params / params)) <= math.log(1.1):
        return []
    return [
        f"preset: {name} has {target.params:.3g} parameters, not {params:.3g}; shapes and FLOPs "
        "are the preset's, growth timing and saving are not"
    ]


def _shape_json(shape: Shape) -> dict[str, Any]:
    return {
        **config.to_dict(shape.model),
        "params": shape.params,
        "non_embedding_params": shape.non_embedding,
        "flops_per_token": shape.flops_per_token,
    }
