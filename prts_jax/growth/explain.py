"""What a growth map does, in words: what is kept of the function, and what becomes of each leaf."""

from collections.abc import Mapping

from prts_jax.declaration import Declaration
from prts_jax.growth import function_preservation
from prts_jax.growth.leaf import is_copied
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.widening import NEW


def reasons(growth_map: GrowthMap) -> list[str]:
    """Returns why the target does not compute what the source does; none where it does.

    Each is a clause; see `GrowthMap.function_preserving`, which is true just where there is none.
    """
    source, target, widths = growth_map.source, growth_map.target, growth_map.widths
    found = []
    kept = growth_map.adding_layers()
    if NEW in kept:
        found.append("fresh layers add to the stream")
    if [layer for layer in kept if layer != NEW] != list(range(source.layers)):
        found.append("the stream passes through copied layers more than once or in another order")
    if growth_map.matrices is not None:
        found.append("matrices mix layers and positions")
    if growth_map.noise:
        found.append(f"{growth_map.noise:.0%} noise is mixed in")
    if growth_map.adds_random():
        found.append("new entries are random and add to the old ones")
    if not function_preservation.keeps_sums(widths):
        found.append("the weights of a position's copies do not sum to one")
    if not function_preservation.keeps_norms(source, target, widths, growth_map.norm_scale):
        found.append("the norms see another mean square, or keep their scale or epsilon")
    if not function_preservation.keeps_attention(
        source, target, widths, "heads" in growth_map.gates
    ):
        found.append("queries meet other keys or other angles than in the source")
    return found


def changes(growth_map: GrowthMap, declarations: Mapping[str, Declaration]) -> dict[str, list[str]]:
    """Returns what becomes of the leaves: what is done → paths; a leaf may be under several.

    Args:
      growth_map: what is applied.
      declarations: path → declaration in the target model.
    """
    deepens = growth_map.layers != tuple(range(growth_map.source.layers))
    has_copies = any(layer != NEW for layer in growth_map.layers)
    done: dict[str, list[str]] = {
        "kept": [],
        "layers copied": [],
        "layers mixed": [],
        "layers drawn": [],
        "outputs zeroed": [],
        "widened": [],
        "noise mixed in": [],
    }
    for path, leaf in declarations.items():
        widens = any(axis in growth_map.widths for axis in leaf.axes)
        copied = is_copied(growth_map, leaf)
        mixed = leaf.stacked and growth_map.matrices is not None
        if mixed:
            done["layers mixed"].append(path)
        if leaf.stacked and deepens and has_copies and not mixed:
            done["layers copied"].append(path)
        if leaf.stacked and NEW in growth_map.layers:
            done["layers drawn"].append(path)
        if leaf.writes_stream and growth_map.zeroed:
            done["outputs zeroed"].append(path)
        if widens:
            done["widened"].append(path)
        if growth_map.noise and not leaf.scales_stream:
            done["noise mixed in"].append(path)
        if copied and not (leaf.stacked and (deepens or growth_map.zeroed)):
            done["kept"].append(path)
    return {what: paths for what, paths in done.items() if paths}
