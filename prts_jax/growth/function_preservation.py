"""When growth in width keeps the function: sums, norms and attention give what they gave."""

import math
from collections.abc import Mapping

from prts_jax.config import ModelConfig
from prts_jax.growth.widening import NEW, Widening


def keeps_sums(widths: Mapping[str, Widening]) -> bool:
    """Returns whether every sum over an axis that widens stays what it was."""
    return all(widening.is_partition() for widening in widths.values())


def keeps_norms(
    source: ModelConfig, target: ModelConfig, widths: Mapping[str, Widening], norm_scale: float
) -> bool:
    """Returns whether RMS norms return the copies of what they returned.

    With each of d components c times among D, new ones being zero, the mean square is c·d/D of
    what it was; so must be the epsilon, and the scale its root. Where some components are
    copied more often than others, nothing mends that.
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
