"""When to grow, from what and by how much: the paper's guidelines, and the FLOPs they imply.

Source: Du et al., arXiv 2405.15319: equation 4 for the growth timing, a fixed growth factor of 4,
and the speed-ups of G_stack that it measured at four sizes.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax import config
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.launch import accelerators
from prts_jax.launch.peaks import PEAK_FLOPS_PER_CHIP
from prts_jax.model.counts import count_parameters, six_n_d_per_token, training_flops_per_token
from prts_jax.model.declaration import Declaration
from prts_jax.model.presets import PRESETS, preset

GROWTH_FACTOR = 4
"""Copies of the base. The paper's choice; the fit for it in its appendix is no advice (it would
stack an 8B from 24 copies and a 70B from 221)."""

DEFAULT_MFU = 0.4
"""Assumed, not measured: what a run's metrics.jsonl says of `mfu` is better."""

SECONDS_PER_DAY = 86400

Declare = Callable[[ModelConfig], Mapping[str, Declaration]]
"""`prts_jax.model.llama.declare`: handed in, so that growth depends on no framework."""


@dataclass(frozen=True)
class Measurement:
    """A speed-up that the paper measured: a base on `BASE_TOKENS`, stacked 4 times.

    Attributes:
      name: what the paper calls the size.
      params: all parameters of its shape.
      tokens: of the run from scratch that it is measured against.
      speedup: FLOPs from scratch over FLOPs grown (base included) at equal loss, minus one.
    """

    name: str
    params: float
    tokens: float
    speedup: float

    @property
    def compute(self) -> float:
        """6·N·D, the axis of the paper's figures."""
        return 6 * self.params * self.tokens


MEASURED = (
    Measurement("410M", 373.9e6, 400e9, 0.531),
    Measurement("1.1B", 1.3643e9, 97.7e9, 0.491),  # given as 8e20 FLOPs
    Measurement("3B", 2.3975e9, 240e9, 0.545),
    Measurement("7B", 5.9331e9, 300e9, 0.546),
)
MEASURED_PARAMS = (373.9e6, 7e9)
"""Smallest and largest target: the 410M's own count, and the 7B by its name."""

MEASURED_GROWTH_TOKENS = (1e9, 50e9)
"""Bases of the paper's study of growth timing (its published checkpoints, 410M and 1.1B)."""

BASE_TOKENS = 10e9
"""Of every measured speed-up's base."""

MOST_COMPUTE = 1e30
"""C, FLOPs, beyond which equation 4 is refused: eight orders above the largest measured run."""


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
class Saving:
    """What the paper would predict.

    Attributes:
      speedup: FLOPs from scratch / FLOPs grown − 1 at equal loss, base included.
      flops_saved: share of the FLOPs from scratch that growth saves, 1 − 1 / (1 + speedup).
      status: "measured" where the paper has a run of about this size and length, else
        "extrapolated".
      basis: what the prediction rests on, in a sentence.
      measured_range: lowest and highest speed-up that the paper measured.
    """

    speedup: float
    flops_saved: float
    status: str
    basis: str
    measured_range: tuple[float, float]


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


def growth_timing(params: float, tokens: float) -> float:
    """Returns d, the tokens to train the base on before it grows.

    Equation 4 of the paper: log10 d = 0.88·log10 N + 163.27 / log10 C − 5.74 with C = 6·N·D.

    >>> round(growth_timing(params=8e9, tokens=15e12) / 1e9, 2)
    6.58

    Args:
      params: N, the target's parameters.
      tokens: D, what the target would be trained on from scratch.

    Raises:
      UserError: params or tokens are no count, or the equation has no meaning there: it asks for
        less than one token or for as many as the whole run has, or C is beyond `MOST_COMPUTE`.
    """
    for name, value in (("params", params), ("tokens", tokens)):
        if not (math.isfinite(value) and value >= 1):
            raise UserError(f"{name}: is {value:g}; give a count of at least 1, such as 7e9")
    # In logarithms throughout: absurd sizes overflow otherwise, before they can be refused.
    log_n, log_d = math.log10(params), math.log10(tokens)
    log_c = math.log10(6) + log_n + log_d
    log_growth = 0.88 * log_n + 163.27 / log_c - 5.74
    reason = ""
    if log_c > math.log10(MOST_COMPUTE):
        reason = f"beyond {MOST_COMPUTE:.0e} it says nothing"
    elif log_growth >= log_d:
        reason = "it would train the base on as many tokens as the run has, or more"
    elif log_growth < 0:
        reason = "it would train the base on less than a token"
    if reason:
        least, most = _bounds(m.compute for m in MEASURED)
        raise UserError(
            f"growth timing: for params={params:g} and tokens={tokens:g} equation 4 has no meaning "
            f"(C = 10^{log_c:.1f} FLOPs; {reason}); give a run nearer to those that the paper "
            f"measured, {least:.1e} to {most:.1e} FLOPs"
        )
    return 10**log_growth


def base_model(target: ModelConfig) -> ModelConfig:
    """Returns the base that G_stack grows into `target`: a quarter of its layers, all else equal.

    Raises:
      UserError: the layers cannot be divided by the growth factor.
    """
    if target.layers < GROWTH_FACTOR or target.layers % GROWTH_FACTOR:
        raise UserError(
            f"target: has {target.layers} layers, which {GROWTH_FACTOR} copies of a base cannot "
            f"make; choose a shape whose layers are a multiple of {GROWTH_FACTOR}"
        )
    return dataclasses.replace(target, layers=target.layers // GROWTH_FACTOR)


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
      declare: `prts_jax.model.llama.declare`.
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
        warnings=tuple(_warnings(params, tokens, growth_tokens, target, chosen)),
    )


def predicted_saving(params: float, tokens: float) -> Saving:
    """Returns the speed-up that the paper measured at the size nearest to `params`.

    The four measured speed-ups differ by less than the runs they come from (size, length, shape),
    so nothing is fitted through them.
    """
    nearest = min(MEASURED, key=lambda m: abs(math.log(m.params / params)))
    # Counts of one model differ by up to a fifth with what is counted: the paper's 7B has 5.93e9.
    is_measured = all(
        abs(math.log(ours / theirs)) <= math.log(1.2)
        for ours, theirs in ((params, nearest.params), (tokens, nearest.tokens))
    )
    basis = (
        f"the paper measured {nearest.speedup:.1%} with its {nearest.name} against "
        f"{nearest.tokens / 1e9:,.0f}B tokens from scratch (base on {BASE_TOKENS / 1e9:.0f}B "
        f"tokens, stacked {GROWTH_FACTOR} times)"
    )
    if not is_measured:
        basis += f", the nearest in size; for {params:.3g} parameters on {tokens:.3g} tokens "
        basis += "this is extrapolated"
    return Saving(
        speedup=nearest.speedup,
        flops_saved=1 - 1 / (1 + nearest.speedup),
        status="measured" if is_measured else "extrapolated",
        basis=basis,
        measured_range=_bounds(m.speedup for m in MEASURED),
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


def _warnings(
    params: float, tokens: float, growth_tokens: int, target: Shape, preset_name: str
) -> list[str]:
    checked = (
        ("parameters", params, MEASURED_PARAMS),
        ("tokens", tokens, _bounds(m.tokens for m in MEASURED)),
        ("C = 6·N·D FLOPs", 6 * params * tokens, _bounds(m.compute for m in MEASURED)),
        ("growth tokens d", float(growth_tokens), MEASURED_GROWTH_TOKENS),
    )
    warnings = [
        f"{name}: {value:.3g} is outside what the paper measured, {least:.3g} to {most:.3g}"
        for name, value, (least, most) in checked
        if not least <= value <= most
    ]
    share, measured_share = growth_tokens / tokens, max(BASE_TOKENS / m.tokens for m in MEASURED)
    if share > measured_share:
        warnings.append(
            f"growth tokens d: {share:.0%} of all tokens; in the paper's measured speed-ups the "
            f"base saw at most {measured_share:.0%}"
        )
    if abs(math.log(target.params / params)) > math.log(1.1):
        warnings.append(
            f"preset: {preset_name} has {target.params:.3g} parameters, not {params:.3g}; shapes "
            "and FLOPs are the preset's, growth timing and saving are not"
        )
    return warnings


def _bounds(values: Iterable[float]) -> tuple[float, float]:
    listed = list(values)
    return min(listed), max(listed)


def _shape_json(shape: Shape) -> dict[str, Any]:
    return {
        **config.to_dict(shape.model),
        "params": shape.params,
        "non_embedding_params": shape.non_embedding,
        "flops_per_token": shape.flops_per_token,
    }
