"""The arithmetic of growth: makes some layers of one leaf. All executors call this."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.declaration import Declaration, Kind
from prts_jax.growth import dense
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Arrays
from prts_jax.growth.moments import grow_moment
from prts_jax.growth.recipe import LeafRecipe, Make, is_noisy, query_key_factor, sums_over
from prts_jax.growth.widening import NEW, along
from prts_jax.model.initialise import draw_rows, init_leaf, leaf_key, standard_deviation


def grow_leaf(
    recipe: LeafRecipe,
    growth_map: GrowthMap,
    source: Any,
    arrays: Arrays | None = None,
) -> jax.Array:
    """Grows a whole leaf: a pure function, linear in the source and in each matrix.

    The source's leaf is `[layers, …]` where stacked; None where the source has none. `arrays` are
    the matrices of a dense map, see `prts_jax.growth.dense.arrays_of`. Returns the target's leaf,
    in the source's dtype.
    """
    declaration = recipe.declaration
    if not declaration.stacked:
        only = jnp.zeros(1, jnp.int32)
        return grow_layers(recipe, growth_map, source[None], only, arrays)[0]
    targets = jnp.arange(len(recipe.layers), dtype=jnp.int32)
    shape = (-1, *[1] * (len(declaration.shape) - 1))

    def where(make: Make, values: Any, otherwise: jax.Array) -> jax.Array:
        chosen = np.array([layer.make is make for layer in recipe.layers])
        return jnp.where(chosen.reshape(shape), values, otherwise) if chosen.any() else otherwise

    if recipe.targets(Make.MIXTURE):
        mixed = dense.mix_layers((arrays or {})[dense.depth_name(recipe.parameter)], source)
        grown = grow_layers(recipe, growth_map, mixed, targets, arrays)
    elif recipe.targets(Make.COPY):
        index = np.array([max(layer.source, 0) for layer in recipe.layers])
        grown = grow_layers(recipe, growth_map, jnp.take(source, index, axis=0), targets, arrays)
    else:
        grown = jnp.zeros(declaration.shape, declaration.dtype)
    if recipe.targets(Make.FRESH):
        grown = where(Make.FRESH, fresh_layers(recipe, growth_map, targets), grown)
    return where(Make.ZERO, 0, grown)


def grow_layers(
    recipe: LeafRecipe,
    growth_map: GrowthMap,
    values: jax.Array,
    targets: jax.Array,
    arrays: Arrays | None = None,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Widens layers of a leaf, then mixes noise into it: `W ← (1-α) W + α ε` (App. I.2).

    Along every axis that widens, positions are copied; along contracted ones they are weighted.
    New positions (W of shape (out, in), as the paper writes it):
      zero:   `W' = [[W, A], [0, C]]`, embedding `[E, 0]`, norm `[√(d/D) μ, 1]`
      random: `W' = [[W, A], [B, C]]`, embedding `[E, ε]`, norm `[√(d/D) μ, 1]`
    with A, B, C, ε fresh from the initialiser: functions of (seed, path, target layer).
    A dense map widens by its matrices instead (`prts_jax.growth.dense`), and a moment follows its
    parameter (`prts_jax.growth.moments`).

    Args:
      recipe: of the leaf.
      growth_map: what is applied.
      values: source layers `[n, …]`, the one that each of n target layers copies (or, of a dense
        map, the mixture that it is); n is 1 for a leaf without layers.
      targets: `[n]` int32, the target layers.
      arrays: the matrices of a dense map, see `prts_jax.growth.dense.arrays_of`.
      rows: `[r]` int32, the positions to make along a layer's first axis; `values` then hold the
        source's row for each of them (see `source_rows`), anything for a new one. None makes all
        from whole layers, as a dense map does.

    Returns:
      `[n, …]` in the target's shape; with `rows`, r of them along that axis.
    """
    if recipe.unchanged:
        return values
    declaration = recipe.declaration
    if recipe.power:
        return grow_moment(values, growth_map, declaration, recipe.power, rows, recipe.first_only)
    grown = values
    if growth_map.matrices is not None:
        grown = dense.mix_positions(values, growth_map, recipe.parameter, declaration, arrays or {})
    else:
        grown = _widen(values, growth_map, recipe, targets, rows)
    if is_noisy(growth_map, declaration):
        grown = _with_noise(grown, growth_map, recipe, targets, rows)
    return grown.astype(values.dtype)


def fresh_layers(
    recipe: LeafRecipe,
    growth_map: GrowthMap,
    targets: jax.Array,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Makes new layers `[n, …]`: functions of (seed, path, target layer) and of nothing else.

    `targets` are `[n]` int32, the target layers (of a leaf without layers: any one), and `rows`
    `[r]` int32, the positions to make along a layer's first axis; None makes all.
    """
    declaration, path = recipe.declaration, recipe.parameter
    layers = growth_map.target.layers
    if declaration.stacked:
        return init_leaf(path, declaration, layers, "paper", growth_map.seed, targets, rows)
    return init_leaf(path, declaration, layers, "paper", growth_map.seed, rows=rows)[None]


def source_rows(growth_map: GrowthMap, declaration: Declaration, rows: range) -> list[int]:
    """Returns the source's row for each row of a target layer, `NEW` for a new one.

    Rows are positions along the first axis of a layer.
    """
    axis = declaration.layer_axes[0]
    if axis not in growth_map.widths:
        return list(rows)
    index = growth_map.widths[axis].index
    return [index[row] for row in rows]


def _widen(
    values: jax.Array,
    growth_map: GrowthMap,
    recipe: LeafRecipe,
    targets: jax.Array,
    rows: jax.Array | None,
) -> jax.Array:
    declaration = recipe.declaration
    grown = values
    # By "contracted": which positions are new, and whether there are any.
    is_new: dict[bool, Any] = {True: np.zeros((), bool), False: np.zeros((), bool)}
    has_new = {True: False, False: False}
    for at, axis in enumerate(declaration.layer_axes, start=1):
        if axis not in growth_map.widths:
            continue
        widening = growth_map.widths[axis]
        index: Any = np.asarray(widening.index)
        weights: Any = np.asarray(widening.weights, grown.dtype)
        if at == 1 and rows is not None:
            index, weights = jnp.asarray(index)[rows], jnp.asarray(weights)[rows]
        else:
            grown = jnp.take(grown, np.maximum(index, 0), axis=at)
        contracted = sums_over(declaration, axis)
        if contracted:
            grown = grown * along(weights, at, grown.ndim)
        is_new[contracted] = is_new[contracted] | along(index == NEW, at, grown.ndim)
        has_new[contracted] |= widening.has_new
    grown = grown * _factor(growth_map, declaration, rows)
    if growth_map.pair_noise:
        grown = grown + _paired_noise(growth_map, recipe, targets, rows)
    if growth_map.new == "zero":
        blank = 1 if declaration.kind is Kind.NORM else 0
        grown = jnp.where(is_new[False], jnp.asarray(blank, grown.dtype), grown)
        drawn, draws = is_new[True], has_new[True]
    else:
        drawn, draws = is_new[True] | is_new[False], has_new[True] or has_new[False]
    if draws:
        fresh = fresh_layers(recipe, growth_map, targets, rows)
        grown = jnp.where(drawn, fresh, grown)
    return grown


def _factor(growth_map: GrowthMap, declaration: Declaration, rows: jax.Array | None) -> Any:
    """Returns the factor that keeps the function, of norms of the stream, queries and keys."""
    if not declaration.scales_stream:
        return np.float32(query_key_factor(growth_map, declaration))
    factor: Any = np.float32(growth_map.norm_scale)
    if growth_map.target.tied and not declaration.stacked and "embed" in growth_map.widths:
        weights = np.asarray(growth_map.widths["embed"].weights, np.float32)
        factor = factor * (weights if rows is None else jnp.asarray(weights)[rows])[None]
    return factor


def _with_noise(
    values: jax.Array,
    growth_map: GrowthMap,
    recipe: LeafRecipe,
    targets: jax.Array,
    rows: jax.Array | None,
) -> jax.Array:
    """Mixes in ε of variance 1/(d·l²) for output projections and 2/(5d) for the others."""
    width, layers = growth_map.target.embed, growth_map.target.layers
    declaration = recipe.declaration
    variance = 1 / (width * layers**2) if declaration.writes_stream else 2 / (5 * width)
    name = f"{recipe.parameter}:noise"
    noise = _normal(growth_map.seed, name, declaration, targets, declaration.layer_shape, rows)
    share = growth_map.noise
    return values * np.float32(1 - share) + noise * np.float32(share * math.sqrt(variance))


def _normal(
    seed: int,
    name: str,
    declaration: Declaration,
    targets: jax.Array,
    shape: tuple[int, ...],
    rows: jax.Array | None,
) -> jax.Array:
    """Returns standard normal values `[n, …]`, functions of (seed, name, target layer)."""
    key = leaf_key(seed, name)

    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.normal(key, shape, declaration.dtype)

    return jax.vmap(lambda layer: draw_rows(draw, jax.random.fold_in(key, layer), shape, rows))(
        targets
    )


def _paired_noise(
    growth_map: GrowthMap, recipe: LeafRecipe, targets: jax.Array, rows: jax.Array | None
) -> jax.Array | float:
    """Returns noise that cancels between the copies of each contracted position."""
    declaration = recipe.declaration
    split = [
        (at, growth_map.widths[axis])
        for at, axis in enumerate(declaration.layer_axes, start=1)
        if axis in growth_map.widths and sums_over(declaration, axis)
    ]
    if not split:
        return 0.0
    shape = list(declaration.layer_shape)
    for at, widening in split:
        shape[at - 1] = len(widening.copies())
    drawn = rows
    for at, widening in split:
        if at == 1 and rows is not None:
            drawn = jnp.maximum(jnp.asarray(widening.index)[rows], 0)
    name = f"{recipe.parameter}:pairs"
    noise = _normal(growth_map.seed, name, declaration, targets, tuple(shape), drawn)
    for at, widening in split:
        signs: Any = np.asarray(widening.pair_signs(), np.float32)
        if at == 1 and rows is not None:
            signs = jnp.asarray(signs)[rows]
        else:
            noise = jnp.take(noise, np.maximum(np.asarray(widening.index), 0), axis=at)
        noise = noise * along(signs, at, noise.ndim)
    scale = standard_deviation(declaration, growth_map.target.layers, "paper")
    return noise * np.float32(scale * growth_map.pair_noise)
