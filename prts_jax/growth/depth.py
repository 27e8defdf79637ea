"""Growth in depth by copying layers: G_stack, its rivals, and any list of layers.

Notation: l source layers, L target layers, g = L / l. Source, where no other is named: Du et al.,
"Stacking Your Transformers", arXiv 2405.15319, section 3 and App. A and H.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from prts_jax.config import MAX_LAYERS, GrowthConfig, ModelConfig, nearest
from prts_jax.errors import UserError
from prts_jax.growth.gates import schedule
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.notation import parse_layers
from prts_jax.growth.operator import BLOCK, FACTOR, GATE_STEPS, ORDER, SEED, operator
from prts_jax.growth.widening import NEW

ORDERS = ("interleave", "stack")
"""Orders in which `zero` and `random` put new layers: each after its original, or all on top."""


@operator("stack", factor=FACTOR)
def stack(source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]) -> GrowthMap:
    """G_stack: `M∘M∘…∘M`, g copies of the source on top of each other.

    Target layer i copies source layer `i mod l` (App. A). Not function preserving. Option factor:
    g; by default L / l.

    Raises:
      UserError: no layers, neither target nor factor, or a target that is not g·l layers deep.
    """
    factor = _factor("stack", source, target, options)
    layers = tuple(range(source.layers)) * factor
    return _deepened("stack", {"factor": factor}, source, target, layers)


@operator(
    "layers",
    layers="source layer of each target layer, as '1-234*7-56' (one-based, * repeats the group "
    "before it, sources of at most 9 layers) or '0:24,8:32' (zero-based, half-open)",
)
def index_list(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> GrowthMap:
    """Copies any list of source layers: partial stacking, or an order of one's own.

    Option layers: the list, in the notation of `prts_jax.growth.notation.parse_layers`.

    Raises:
      UserError: a list that cannot be read, is shorter than the source, does not fit the target,
        or names a layer that the source lacks.
    """
    notation = options.get("layers", "")
    layers = parse_layers(notation, source.layers)
    return _deepened("layers", {"layers": notation}, source, target, layers)


@operator("interpolate", factor=FACTOR)
def interpolate(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> GrowthMap:
    """Repeats each layer g times in its place: target layer i copies `⌊i / g⌋` (App. H.2).

    Not function preserving. 3 → 6 layers: 0, 0, 1, 1, 2, 2. Option factor: g; by default L / l.

    Raises:
      UserError: as `stack`.
    """
    factor = _factor("interpolate", source, target, options)
    layers = tuple(at // factor for at in range(factor * source.layers))
    return _deepened("interpolate", {"factor": factor}, source, target, layers)


@operator("solar", drop="layers that each of the two copies lacks (default: from the target)")
def solar(source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]) -> GrowthMap:
    """SOLAR's up-scaling: two copies, the first without its last m layers, the second its first.

    Layers `0 … l-m-1, m … l-1`, so L = 2(l - m). Not function preserving. 32 → 48 layers, m = 8.
    Option drop: m; by default l - L / 2. Source: Kim et al., "SOLAR 10.7B", arXiv 2312.15166,
    section 2.

    Raises:
      UserError: neither target nor m, a target of odd depth, or 2m above l.
    """
    drop = options.get("drop", 0)
    if not drop and target is not None:
        drop, odd = divmod(2 * source.layers - target.layers, 2)
        if odd or drop < 0:
            raise UserError(
                f"growth: {target.layers} target layers are not twice {source.layers} - m for any "
                "m; solar makes an even number of at most twice the source's"
            )
    elif not drop:
        raise UserError("growth.drop: is 0 and no target is given; give one, as drop=8")
    if not 0 <= 2 * drop <= source.layers:
        raise UserError(
            f"growth.drop: is {drop}; two copies without {drop} layers each must keep all of the "
            f"source's {source.layers}: give at most {source.layers // 2}"
        )
    layers = (*range(source.layers - drop), *range(drop, source.layers))
    return _deepened("solar", {"drop": drop}, source, target, layers)


@operator("block_expansion", every="a new layer after every so many (default: from the target)")
def block_expansion(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> GrowthMap:
    """LLaMA Pro's: after every k-th layer a copy of it with zero outputs. Function preserving.

    L = l + l / k. 32 → 40 layers, k = 4: copies of layers 3, 7, …, 31. Option every: k; by default
    l / (L - l). Source: Wu et al., "LLaMA Pro", arXiv 2401.02415, section 3.2.

    Raises:
      UserError: neither target nor k, or a k that does not divide l.
    """
    every = options.get("every", 0)
    added = 0 if target is None else target.layers - source.layers
    if not every and target is None:
        raise UserError("growth.every: is 0 and no target is given; give one, as every=4")
    if not every and added > 0:
        every = source.layers // added
    if every < 1 or source.layers < 1 or source.layers % every:
        raise UserError(
            f"growth.every: is {every}; it must be 1 or more and divide the source's "
            f"{source.layers} layers"
        )
    layers: list[int] = []
    zeroed: list[int] = []
    for layer in range(source.layers):
        layers.append(layer)
        if layer % every == every - 1:
            zeroed.append(len(layers))
            layers.append(layer)
    return _deepened(
        "block_expansion", {"every": every}, source, target, tuple(layers), tuple(zeroed)
    )


@operator("middle", block=BLOCK)
def middle(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> GrowthMap:
    """MIDAS: of n = l / b blocks of b layers, block ⌈n / 2⌉ (from one) once more after itself.

    L = l + b. Not function preserving; meant for stages. Option block: b; by default L - l. Source:
    Saunshi et al., "On the Inductive Bias of Stacking Towards Improving Reasoning", NeurIPS 2024,
    arXiv 2409.19044, section 2.

    Raises:
      UserError: neither target nor b, or a b that does not divide l.
    """
    block = _block("middle", source, target, options)
    if source.layers % block:
        raise UserError(
            f"growth.block: {block} does not divide the source's {source.layers} layers, so there "
            "is no middle block; give a divisor"
        )
    stop = -(-(source.layers // block) // 2) * block
    layers = (*range(stop), *range(stop - block, source.layers))
    return _deepened("middle", {"block": block}, source, target, layers)


@operator("last", block=BLOCK)
def last(source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]) -> GrowthMap:
    """A stage of gradual stacking: the last b layers once more on top, L = l + b.

    6 → 9 → 18 layers: 0 … 5, 3, 4, 5, then all nine twice. Not function preserving. Option block:
    b, at most l; by default L - l. Source: Reddi et al., "Efficient Training of Language Models
    using Few-Shot Learning", ICML 2023; `gs` in the paper's code.

    Raises:
      UserError: neither target nor b, or b beyond l.
    """
    block = _block("last", source, target, options)
    layers = (*range(source.layers), *range(source.layers - block, source.layers))
    return _deepened("last", {"block": block}, source, target, layers)


@operator("zero", factor=FACTOR, order=ORDER)
def zero(source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]) -> GrowthMap:
    """G_zero in depth: duplicates whose outputs are zero. Function preserving, exactly (App. A).

    Interleaved (the default of the option order) as the paper's code has it, target layer i copies
    `⌊i / g⌋` and the first copy of each is kept; with order "stack", it copies `i mod l` and the
    first l are kept. At the first step only the zero outputs have a gradient. Option factor: g; by
    default L / l.

    Raises:
      UserError: as `stack`, or an unknown order.
    """
    order = _order(options)
    factor = _factor("zero", source, target, options)
    total = range(factor * source.layers)
    if order == "stack":
        layers = tuple(at % source.layers for at in total)
        zeroed = tuple(at for at in total if at >= source.layers)
    else:
        layers = tuple(at // factor for at in total)
        zeroed = tuple(at for at in total if at % factor)
    return _deepened("zero", {"factor": factor, "order": order}, source, target, layers, zeroed)


@operator("random", factor=FACTOR, order=ORDER, seed=SEED, gate_steps=GATE_STEPS)
def random(
    source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> GrowthMap:
    """G_random in depth: new layers drawn from the initialiser (App. A; MSG in one hop).

    Interleaved, each layer is followed by g - 1 new ones; with order "stack", the new ones are on
    top. New layers have gates, `Y = X + f(X) ⊙ c`, c from 0 at growth to 1 after T steps (option
    gate_steps): function preserving, exactly. Without gates (T = 0) it is not. It also grows from
    no layers at all, to any number. Other options: factor and order as `zero`; seed, of new layers.

    Raises:
      UserError: as `zero`, or negative gate_steps.
    """
    order = _order(options)
    gates = schedule(["layers"], options.get("gate_steps", GrowthConfig.gate_steps))
    if source.layers == 0 and target is not None and not options.get("factor"):
        layers: tuple[int, ...] = (NEW,) * target.layers
        factor = 0
    else:
        factor = _factor("random", source, target, options)
        total = range(factor * source.layers)
        if order == "stack":
            layers = tuple(at if at < source.layers else NEW for at in total)
        else:
            layers = tuple(NEW if at % factor else at // factor for at in total)
    growth_map = _deepened("random", {"factor": factor, "order": order}, source, target, layers)
    gates = gates if NEW in layers else {}
    return dataclasses.replace(growth_map, seed=options.get("seed", 0), gates=gates)


def _order(options: Mapping[str, Any]) -> str:
    order = str(options.get("order", ORDERS[0]))
    if order not in ORDERS:
        raise UserError(f"growth.order: {order!r} is unknown; {nearest(order, ORDERS)}")
    return order


def _factor(
    operator: str, source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> int:
    """Returns g: the option, or how many times the source goes into the target."""
    if source.layers < 1:
        raise UserError(
            f"growth.source: has no layers to {operator}; start from a model that has some"
        )
    factor = int(options.get("factor", 0))
    if not factor and target is None:
        raise UserError("growth.factor: is 0 and no target is given; give one, as factor=4")
    if not factor and target is not None:
        factor, rest = divmod(target.layers, source.layers)
        if rest or factor < 1:
            raise UserError(
                f"growth: {target.layers} target layers are no multiple of the source's "
                f"{source.layers}; {operator} needs one, or use the operator 'layers'"
            )
    if factor < 0 or factor * source.layers > MAX_LAYERS:
        raise UserError(
            f"growth.factor: is {factor}; it must be 1 or more and give at most {MAX_LAYERS} layers"
        )
    return factor


def _block(
    operator: str, source: ModelConfig, target: ModelConfig | None, options: Mapping[str, Any]
) -> int:
    """Returns b: the option, or the layers that the target has more than the source."""
    block = int(options.get("block", 0))
    if not block and target is None:
        raise UserError("growth.block: is 0 and no target is given; give one, as block=3")
    if not block and target is not None:
        block = target.layers - source.layers
    if not 1 <= block <= source.layers:
        raise UserError(
            f"growth.block: is {block}; {operator} copies 1 to {source.layers} of the source's "
            "layers"
        )
    return block


def _deepened(
    operator: str,
    options: Mapping[str, Any],
    source: ModelConfig,
    target: ModelConfig | None,
    layers: tuple[int, ...],
    zeroed: tuple[int, ...] = (),
) -> GrowthMap:
    grown = dataclasses.replace(source, layers=len(layers)) if target is None else target
    growth_map = GrowthMap(operator, options, source, grown, layers, zeroed)
    growth_map.validate()
    return growth_map
