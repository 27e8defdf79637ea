"""Function preservation: the conditions under which the target computes what the source does."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from prts_jax.config import ModelConfig
from prts_jax.growth.widening import NEW, Widening

if TYPE_CHECKING:
    from prts_jax.growth.map import GrowthMap


def reasons(growth_map: "GrowthMap") -> list[str]:
    """Returns why the target does not compute what the source does, a clause each; none if it does.

    A layer with zero outputs, or with a gate, which is shut at growth, adds nothing to the residual
    stream. So the other layers must be the source's, each once and in order, and every axis that
    widens must keep the sums over it, the mean squares of norms and the attention scores.
    """
    source, target, widths = growth_map.source, growth_map.target, growth_map.widths
    adding = growth_map.adding_layers()
    copied = [layer for layer in adding if layer != NEW]
    breaks = {
        "fresh layers add to the stream": NEW in adding,
        "the stream passes through copied layers more than once or in another order": copied
        != list(range(source.layers)),
        "matrices mix layers and positions": growth_map.matrices is not None,
        f"{growth_map.noise:.0%} noise is mixed in": growth_map.noise > 0,
        "new entries are random and add to the old ones": growth_map.adds_random(),
        "the weights of a position's copies do not sum to one": not keeps_sums(widths),
        "the norms see another mean square, or keep their scale or epsilon": not keeps_norms(
            source, target, widths, growth_map.norm_scale
        ),
        "queries meet other keys or other angles than in the source": not keeps_attention(
            source, target, widths, "heads" in growth_map.gates
        ),
    }
    return [clause for clause, applies in breaks.items() if applies]


def keeps_sums(widths: Mapping[str, Widening]) -> bool:
    """Returns whether every sum over an axis that widens stays what it was."""
    return all(widening.is_partition() for widening in widths.values())


def keeps_norms(
    source: ModelConfig, target: ModelConfig, widths: Mapping[str, Widening], norm_scale: float
) -> bool:
    """Returns whether RMS norms of the stream return copies of what they returned.

    With each of d components c times among D, new ones zero, the mean square is multiplied by
    c·d/D. The epsilon must be too, and the scale by the root. Where some components are copied more
    often than others, no factor corrects the mean square.
    """
    ratio = 1.0
    if "embed" in widths:
        times = set(widths["embed"].copies().values())
        if len(times) != 1:
            return False
        ratio = times.pop() * source.embed / target.embed
    return math.isclose(norm_scale, math.sqrt(ratio)) and math.isclose(
        target.norm_eps, source.norm_eps * ratio
    )


def keeps_attention(
    source: ModelConfig,
    target: ModelConfig,
    widths: Mapping[str, Widening],
    new_heads_gated: bool,
) -> bool:
    """Returns whether each copied query reads its own keys, turned by the same angles.

    New queries must be gated or read new keys and values (zero), and a wider head must hold each
    rotary pair i of D/2 once, at the pair of the same frequency, i·D'/D, in both halves.
    """
    kv = widths["kv_heads"].index if "kv_heads" in widths else tuple(range(source.kv_heads))
    heads = widths["heads"].index if "heads" in widths else tuple(range(source.heads))
    old, new = source.heads // source.kv_heads, target.heads // target.kv_heads
    for at, head in enumerate(heads):
        if head == NEW and new_heads_gated:
            continue
        if kv[at // new] != (NEW if head == NEW else head // old):
            return False
    if "head_dim" not in widths:
        return True
    widening, half = widths["head_dim"], target.head_dim // 2
    low, high = widening.index[:half], widening.index[half:]
    return (
        set(widening.copies().values()) == {1}
        and high == tuple(NEW if pair == NEW else pair + source.head_dim // 2 for pair in low)
        and all(
            pair == NEW or at * source.head_dim == pair * target.head_dim
            for at, pair in enumerate(low)
        )
    )
