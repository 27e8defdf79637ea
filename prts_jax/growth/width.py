"""Growth in width: split (Net2Net, bert2BERT), zero and random. The layers may deepen with it.

Notation: d, D an axis' size in source and target. Source: Du et al., arXiv 2405.15319, App. A,
with the corrections that make its equations exact (each function names them).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prts_jax.config import GrowthConfig, ModelConfig, nearest
from prts_jax.errors import UserError
from prts_jax.growth.gates import schedule
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operator import (
    FACTOR,
    GATE_STEPS,
    NORM,
    NORM_OR_RMS,
    SEED,
    WIDTHS,
    operator,
)
from prts_jax.growth.wide_target import wide_target
from prts_jax.growth.widening import NEW, Widening, keeping_mean_square, partition

WEIGHTS = ("even", "uneven")
NORMS = ("exact", "paper")
NORMS_OR_RMS = (*NORMS, "rms")


@operator(
    "split",
    widths=WIDTHS,
    factor=FACTOR,
    weights="'even' or 'uneven', 2/3 and 1/3 of two copies",
    pair_noise="noise added to one copy and taken from the other, as a share of a fresh "
    "parameter's standard deviation",
    seed=SEED,
    norm=NORM_OR_RMS,
)
def split(source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]) -> GrowthMap:
    """G_direct in width: copies of positions, their weights split where they are summed over.

    `E' = E R`, `R = [I I …]`; `W' = L W R` with copies of output rows in L and input columns split
    in R, α + β = I. Position i copies `i mod d`; heads are copied by whole query groups. Function
    preserving where the width of the stream grows by an integer factor or not at all: the mean
    square of `[x, x]` is that of `x`, so norms stay unscaled (the paper prints √(d/D), which is not
    exact: norm="paper"). Other factors copy some components more often than others, and the norm no
    longer sees the same mean square (eqs 10-11). A tied embedding is produced and contracted at
    once: it is copied, and the final norm carries the weights.

    norm="rms" keeps the mean square of activations instead of the function, for any width: all
    columns are multiplied by √(d/(3D − 2d)), norms stay (SPARKLING, arXiv 2602.02472). For D = 2d
    that is the even split.

    Options widths: sizes as "embed=2048,heads=32", by default the target's; factor: of depth, whose
    layers are then stacked; weights: "even", or "uneven" (2/3 and 1/3 of two copies); pair_noise:
    standard deviation, relative to a fresh parameter's, of noise added to one copy and taken from
    the other; seed: of that noise.

    Raises:
      UserError: no or an unknown axis, an axis that shrinks, head_dim (its rotary frequencies and
        softmax scale allow no split), fewer queries a group, uneven weights with norm="rms", or
        an unknown option.
    """
    wide = wide_target(source, target, options)
    if wide.head_dim != source.head_dim:
        raise UserError(
            f"growth.widths: head_dim from {source.head_dim} to {wide.head_dim}: splitting it is "
            "never function preserving; grow heads and kv_heads instead, or use zero_width"
        )
    uneven = _choice("weights", options, WEIGHTS) == "uneven"
    norm = _choice("norm", options, NORMS_OR_RMS)
    if norm == "rms" and uneven:
        raise UserError(
            "growth.weights: is 'uneven', and norm='rms' gives all copies one weight; choose one"
        )

    def widening(index: Sequence[int]) -> Widening:
        return keeping_mean_square(index) if norm == "rms" else partition(index, uneven)

    widths = {
        axis: widening([position % size for position in range(getattr(wide, axis))])
        for axis in ("embed", "mlp", "kv_heads")
        if getattr(wide, axis) != (size := getattr(source, axis))
    }
    heads = _head_index(source, wide, copy_groups=True, copy_queries=True)
    if heads != tuple(range(source.heads)):
        widths["heads"] = widening(heads)
    return _widened(
        "split",
        options,
        source,
        wide,
        widths,
        norm_scale=math.sqrt(source.embed / wide.embed) if norm == "paper" else 1.0,
        pair_noise=options.get("pair_noise", 0.0),
    )


@operator("zero_width", widths=WIDTHS, factor=FACTOR, seed=SEED, norm=NORM)
def zero_width(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> GrowthMap:
    """G_zero in width: `W' = [[W, A], [0, C]]`, A and C fresh. Function preserving, by any factor.

    `E' = [E, 0]`, so the stream is `[x, 0]` and new components stay zero until training moves them.
    Norms become `[√(d/D) μ, 1]` and, which the paper leaves out, their epsilon `eps·d/D`: the grown
    config has it (norm="paper" keeps the old one, at about 1e-3 of the logits). New query groups
    have zero queries, keys and values; new queries of an old group copy one of it with weight zero.
    head_dim grows by an integer factor k: rotary pair i goes to pair k·i, and √k into the queries.
    A tied embedding's new columns are zero. A deeper target's new layers are copies with zero
    outputs, each after its original. Options widths, factor and norm: as `split`, without
    norm="rms"; seed: of A and C.

    Raises:
      UserError: no or an unknown axis, an axis that shrinks, a head_dim that is no multiple, fewer
        queries a group, an epsilon of the target's that is neither, or an unknown option.
    """
    return _with_new("zero_width", "zero", source, target, options)


@operator(
    "random_width",
    widths=WIDTHS,
    factor=FACTOR,
    seed=SEED,
    norm=NORM_OR_RMS,
    gate_steps=GATE_STEPS,
)
def random_width(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> GrowthMap:
    """G_random in width: `W' = [[W, A], [B, C]]`, `E' = [E, ε]`, all new entries fresh.

    Every output has gates `c = [1_d, 0] → [1_d, 1]`, which keep the function at growth by any
    factor. MLP units open over steps [0, T) since growth, the stream over [T, 2T), heads over [2T,
    3T) (MSG's order). Norms and epsilon as `zero_width`. A deeper target's new layers are fresh,
    each after its original, with gates that open over [0, T). Without gates (T = 0) it is not
    function preserving. head_dim stays: new rotary pairs would change old scores, and a gate on
    them their scale.

    norm="rms" keeps the mean square of activations instead: no gates, norms and epsilon stay, and
    old columns of a widened input are multiplied by √(d/D); new ones are drawn with fan-in D
    (SPARKLING, arXiv 2602.02472). Options widths, factor and norm: as `split`; seed: of all new
    entries; gate_steps: T.

    Raises:
      UserError: as `zero_width`; another head_dim, or negative gate_steps.
    """
    growth_map = _with_new("random_width", "random", source, target, options, NORMS_OR_RMS)
    if "head_dim" in growth_map.widths:
        raise UserError(
            f"growth.widths: head_dim from {source.head_dim} to {growth_map.target.head_dim}: "
            "gates do not keep attention scores; use zero_width, or grow heads and kv_heads"
        )
    axes = [axis for axis, widening in growth_map.widths.items() if widening.has_new]
    if NEW in growth_map.layers:
        axes.append("layers")
    if options.get("norm") == "rms":
        return growth_map
    gates = schedule(axes, options.get("gate_steps", GrowthConfig.gate_steps))
    return dataclasses.replace(growth_map, gates=gates)


def _with_new(
    operator: str,
    new: str,
    source: ModelConfig,
    target: ModelConfig | None,
    options: Mapping[str, Any],
    norms: tuple[str, ...] = NORMS,
) -> GrowthMap:
    wide = wide_target(source, target, options)
    exact_eps = source.norm_eps * source.embed / wide.embed
    if math.isclose(wide.norm_eps, exact_eps):
        exact_eps = wide.norm_eps  # to the last bit: a config is compared with its checkpoint's
    elif wide.norm_eps != source.norm_eps:
        raise UserError(
            f"config.model.norm_eps: {source.norm_eps} in the source, {wide.norm_eps} in the "
            f"target; {operator} makes it {exact_eps:g}: give that, or the source's"
        )
    norm = _choice("norm", options, norms)
    if norm == "exact":
        wide = dataclasses.replace(wide, norm_eps=exact_eps)
    widths = {}
    for axis in ("embed", "mlp", "kv_heads"):
        size, wider = getattr(source, axis), getattr(wide, axis)
        if wider != size:
            index = [*range(size), *[NEW] * (wider - size)]
            rms = norm == "rms"
            widths[axis] = keeping_mean_square(index) if rms else partition(index, uneven=False)
    heads = _head_index(source, wide, copy_groups=False, copy_queries=new == "zero")
    if heads != tuple(range(source.heads)):
        # The first copy of a head keeps its weight; new heads (zero or drawn) have their own.
        weights = [float(head == NEW or head not in heads[:at]) for at, head in enumerate(heads)]
        widths["heads"] = Widening(heads, tuple(weights))
        if norm == "rms":
            widths["heads"] = keeping_mean_square(heads)
    if wide.head_dim != source.head_dim:
        widths["head_dim"] = partition(_rotary_index(source.head_dim, wide.head_dim), uneven=False)
    return _widened(
        operator,
        options,
        source,
        wide,
        widths,
        norm_scale=1.0 if norm == "rms" else math.sqrt(source.embed / wide.embed),
        new=new,
    )


def _head_index(
    source: ModelConfig, target: ModelConfig, copy_groups: bool, copy_queries: bool
) -> tuple[int, ...]:
    """Returns the source head of each target head: whole groups, so that keys go with queries.

    New groups copy old ones, and further queries of an old group its own, or they are new.
    """
    old, new = source.heads // source.kv_heads, target.heads // target.kv_heads
    if new < old:
        raise UserError(
            f"growth.widths: from {old} to {new} query heads a key head; grow heads and kv_heads "
            "by the same factor (whole query groups), or heads alone"
        )
    index = []
    for head in range(target.heads):
        group, query = divmod(head, new)
        is_new = (not copy_groups and group >= source.kv_heads) or (
            not copy_queries and query >= old
        )
        index.append(NEW if is_new else group % source.kv_heads * old + query % old)
    return tuple(index)


def _rotary_index(old: int, new: int) -> list[int]:
    """Returns where each position of a wider head comes from: pair i goes to pair k·i."""
    factor, rest = divmod(new, old)
    if rest:
        raise UserError(
            f"growth.widths: head_dim from {old} to {new}: rotary frequencies only agree for an "
            f"integer factor; give a multiple of {old}"
        )
    index = [NEW] * new
    for pair in range(old // 2):
        index[factor * pair] = pair
        index[new // 2 + factor * pair] = old // 2 + pair
    return index


def _choice(name: str, options: Mapping[str, Any], choices: tuple[str, ...]) -> str:
    value = str(options.get(name, choices[0]))
    if value not in choices:
        raise UserError(f"growth.{name}: {value!r} is unknown; {nearest(value, choices)}")
    return value


def _widened(
    operator: str,
    options: Mapping[str, Any],
    source: ModelConfig,
    target: ModelConfig,
    widths: dict[str, Widening],
    **rules: Any,
) -> GrowthMap:
    """Makes the map; a deeper target stacks copies, or interleaves zero outputs or fresh layers."""
    factor, rest = divmod(target.layers, source.layers) if source.layers else (1, target.layers)
    wanted = options.get("factor", 0)
    if rest or factor < 1 or (wanted and wanted != factor):
        raise UserError(
            f"growth: from {source.layers} to {target.layers} layers; {operator} keeps them or "
            f"multiplies them by growth.factor ({wanted or 'not given'}); make them agree"
        )
    if operator == "zero_width":
        layers = tuple(at // factor for at in range(target.layers))
        zeroed = tuple(at for at in range(target.layers) if at % factor)
    elif operator == "random_width":
        layers = tuple(NEW if at % factor else at // factor for at in range(target.layers))
        zeroed = ()
    else:
        layers, zeroed = tuple(at % max(source.layers, 1) for at in range(target.layers)), ()
    growth_map = GrowthMap(
        operator,
        dict(options),
        source,
        target,
        layers,
        zeroed,
        widths=widths,
        seed=options.get("seed", 0),
        **rules,
    )
    growth_map.validate()
    return growth_map
