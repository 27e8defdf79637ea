"""The arithmetic of growth: what becomes of some layers of one leaf. Both executors call this."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.declaration import Declaration, Kind
from prts_jax.growth import dense
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Arrays
from prts_jax.growth.widening import NEW
from prts_jax.model.drawing import draw_rows
from prts_jax.model.initialise import init_leaf, leaf_key, standard_deviation


def is_copied(growth_map: GrowthMap, declaration: Declaration) -> bool:
    """Returns whether a leaf's copied layers keep their values (or become zero)."""
    widens = any(axis in growth_map.widths for axis in declaration.axes)
    mixes = growth_map.matrices is not None and declaration.stacked
    return not widens and not mixes and not _is_noisy(growth_map, declaration)


def fresh_layers(
    growth_map: GrowthMap,
    path: str,
    declaration: Declaration,
    targets: jax.Array,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Makes new layers: functions of (seed, path, target layer) and of nothing else.

    Args:
      growth_map: says the seed and the depth.
      path: path of the leaf.
      declaration: of the leaf in the target.
      targets: `[n]` int32, the target layers (of a leaf without layers: any one).
      rows: `[r]` int32, the positions to make along a layer's first axis; None makes all.

    Returns:
      `[n, …]` as the paper's initialiser makes them.
    """
    layers = growth_map.target.layers
    if declaration.stacked:
        return init_leaf(path, declaration, layers, "paper", growth_map.seed, targets, rows)
    return init_leaf(path, declaration, layers, "paper", growth_map.seed, rows=rows)[None]


def grow_layers(
    values: jax.Array,
    growth_map: GrowthMap,
    path: str,
    declaration: Declaration,
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
    A dense map widens by its matrices instead (`prts_jax.growth.dense`).

    Args:
      values: source layers `[n, …]`, the one that each of n target layers copies (or, of a dense
        map, the mixture that it is); n is 1 for a leaf without layers.
      growth_map: what becomes of them.
      path: path of the leaf.
      declaration: of the leaf in the target.
      targets: `[n]` int32, the target layers.
      arrays: the matrices of a dense map, see `prts_jax.growth.dense.arrays_of`.
      rows: `[r]` int32, the positions to make along a layer's first axis; `values` then hold the
        source's row for each of them (see `source_rows`), anything for a new one. None makes all
        from whole layers, as a dense map does.

    Returns:
      `[n, …]` in the target's shape; with `rows`, r of them along that axis.
    """
    grown = values
    if growth_map.matrices is not None:
        grown = dense.mix_positions(values, growth_map, path, declaration, arrays or {})
    elif any(axis in growth_map.widths for axis in declaration.axes):
        grown = _widen(values, growth_map, path, declaration, targets, rows)
    if _is_noisy(growth_map, declaration):
        grown = _with_noise(grown, growth_map, path, declaration, targets, rows)
    return grown.astype(values.dtype)


def source_rows(growth_map: GrowthMap, declaration: Declaration, rows: range) -> list[int]:
    """Returns the source's row for each row of a target layer, `NEW` for a new one.

    Args:
      growth_map: of the growth.
      declaration: of the leaf in the target.
      rows: positions along the first axis of a layer.
    """
    axis = declaration.axes[1 if declaration.stacked else 0]
    if axis not in growth_map.widths:
        return list(rows)
    index = growth_map.widths[axis].index
    return [index[row] for row in rows]


def _widen(
    values: jax.Array,
    growth_map: GrowthMap,
    path: str,
    declaration: Declaration,
    targets: jax.Array,
    rows: jax.Array | None,
) -> jax.Array:
    grown = values
    # By "contracted": which positions are new, and whether there are any.
    is_new: dict[bool, Any] = {True: np.zeros((), bool), False: np.zeros((), bool)}
    has_new = {True: False, False: False}
    for at, axis in inner_axes(declaration):
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
        grown = grown + _paired_noise(growth_map, path, declaration, targets, rows)
    if growth_map.new == "zero":
        blank = 1 if declaration.scales_stream else 0
        grown = jnp.where(is_new[False], jnp.asarray(blank, grown.dtype), grown)
        drawn, draws = is_new[True], has_new[True]
    else:
        drawn, draws = is_new[True] | is_new[False], has_new[True] or has_new[False]
    if draws:
        fresh = fresh_layers(growth_map, path, declaration, targets, rows)
        grown = jnp.where(drawn, fresh, grown)
    return grown


def _is_noisy(growth_map: GrowthMap, declaration: Declaration) -> bool:
    return growth_map.noise > 0 and not declaration.scales_stream


def _with_noise(
    values: jax.Array,
    growth_map: GrowthMap,
    path: str,
    declaration: Declaration,
    targets: jax.Array,
    rows: jax.Array | None,
) -> jax.Array:
    """Mixes in ε of variance 1/(d·l²) for output projections and 2/(5d) for the others."""
    width, layers = growth_map.target.embed, growth_map.target.layers
    variance = 1 / (width * layers**2) if declaration.writes_stream else 2 / (5 * width)
    shape = declaration.shape[1:] if declaration.stacked else declaration.shape
    noise = _normal(growth_map.seed, f"{path}:noise", declaration, targets, shape, rows)
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


def inner_axes(declaration: Declaration) -> list[tuple[int, str]]:
    """Returns (dimension, logical axis) of `[n, …]` arrays."""
    axes = declaration.axes[1:] if declaration.stacked else declaration.axes
    return list(enumerate(axes, start=1))


def sums_over(declaration: Declaration, axis: str) -> bool:
    """Returns whether growth weights the copies along an axis, which the parameter sums over."""
    # A tied embedding also contracts its width, but what it produces must be whole copies: the
    # weights go into the norm before the head.
    return axis in declaration.contracts and declaration.kind is not Kind.TABLE


def along(vector: Any, at: int, ndim: int) -> Any:
    """Returns a vector as an array of `ndim` dimensions that lies along one of them."""
    return vector.reshape([-1 if axis == at else 1 for axis in range(ndim)])


def _factor(growth_map: GrowthMap, declaration: Declaration, rows: jax.Array | None) -> Any:
    """Returns what keeps the function: of norms, and of queries whose softmax scale changed."""
    factor: Any = np.ones((), np.float32)
    if declaration.scales_stream:
        factor = factor * np.float32(growth_map.norm_scale)
        if growth_map.target.tied and not declaration.stacked:
            weights = np.asarray(growth_map.widths["embed"].weights, np.float32)
            factor = factor * (weights if rows is None else jnp.asarray(weights)[rows])[None]
    if declaration.kind is Kind.QUERY and "head_dim" in growth_map.widths:
        wider = growth_map.target.head_dim / growth_map.source.head_dim
        factor = factor * np.float32(math.sqrt(wider))
    return factor


def _paired_noise(
    growth_map: GrowthMap,
    path: str,
    declaration: Declaration,
    targets: jax.Array,
    rows: jax.Array | None,
) -> jax.Array | float:
    """Returns noise that cancels between the copies of each contracted position."""
    split = [
        (at, growth_map.widths[axis])
        for at, axis in inner_axes(declaration)
        if axis in growth_map.widths and sums_over(declaration, axis)
    ]
    if not split:
        return 0.0
    shape = list(declaration.shape[1:] if declaration.stacked else declaration.shape)
    for at, widening in split:
        shape[at - 1] = len(widening.copies())
    drawn = rows
    for at, widening in split:
        if at == 1 and rows is not None:
            drawn = jnp.maximum(jnp.asarray(widening.index)[rows], 0)
    noise = _normal(growth_map.seed, f"{path}:pairs", declaration, targets, tuple(shape), drawn)
    for at, widening in split:
        signs: Any = np.asarray(widening.pair_signs(), np.float32)
        if at == 1 and rows is not None:
            signs = jnp.asarray(signs)[rows]
        else:
            noise = jnp.take(noise, np.maximum(np.asarray(widening.index), 0), axis=at)
        noise = noise * along(signs, at, noise.ndim)
    scale = standard_deviation(declaration, growth_map.target.layers, "paper")
    return noise * np.float32(scale * growth_map.pair_noise)
