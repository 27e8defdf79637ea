"""The text that says of each leaf what growth does with its values and its moments."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from prts_jax.declaration import Declaration
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.new_entries import new_parts
from prts_jax.growth.recipe import Make, changes, moment_recipe, recipes
from prts_jax.text_table import align


def leaf_text(
    growth_map: GrowthMap, declarations: Mapping[str, Declaration], optimizer: str
) -> list[str]:
    """Returns a table: what becomes of the parameters, then of their moments, by leaf.

    `optimizer` is what becomes of its state, as in `init.growth.optimizer`.
    """
    rows = [
        (change, ", ".join(_grouped(paths)))
        for change, paths in changes(growth_map, recipes(growth_map, declarations)).items()
    ]
    if optimizer == "reset":
        rows.append(("moments reset", "all"))
    else:
        rows += [
            (change, ", ".join(_grouped(paths)))
            for change, paths in moment_changes(growth_map, declarations, optimizer).items()
        ]
    return align(rows, text_columns=2)


def moment_changes(
    growth_map: GrowthMap, declarations: Mapping[str, Declaration], optimizer: str
) -> dict[str, list[str]]:
    """Returns what becomes of moments: change → paths of their parameters; each is in one.

    "moments kept": unchanged; "moments copied": grown by the map; "moments copied, zero in new
    entries": grown, and some entries start from zero.
    """
    first_only = optimizer == "asymmetric"
    news = new_parts(growth_map, declarations)
    named: dict[str, list[str]] = defaultdict(list)
    for path, declaration in declarations.items():
        recipe = moment_recipe(growth_map, path, path, declaration, 1, optimizer)
        kept = recipe.unchanged and len(recipe.layers) == declaration.layers and not news[path]
        some_zero = bool(recipe.targets(Make.ZERO)) or any(
            axis in growth_map.widths and (first_only or growth_map.widths[axis].has_new)
            for axis in declaration.axes
        )
        change = "moments kept" if kept else "moments copied"
        named[f"{change}, zero in new entries" if some_zero and not kept else change].append(path)
    return dict(named)


def _grouped(paths: Sequence[str]) -> list[str]:
    """Writes paths of one folder as one: "layers/mlp/{down,up}"."""
    folders = defaultdict(list)
    for path in sorted(paths):
        folder, _, name = path.rpartition("/")
        folders[folder].append(name)
    return [
        f"{folder}/{names[0] if len(names) == 1 else '{' + ','.join(names) + '}'}"
        if folder
        else ", ".join(names)
        for folder, names in folders.items()
    ]
