"""The arithmetic of growth: what becomes of some layers of one leaf. Both executors call this."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.growth import dense
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Arrays
from prts_jax.growth.widening import NEW
from prts_jax.model.declaration import Declaration
from prts_jax.model.initialise import init_leaf, leaf_key, standard_deviation


def is_copied(growth_map: GrowthMap, declaration: Declaration) -> bool:
    """Returns whether a leaf's copied layers keep their values (or become zero)."""
    widens = any(axis in growth_map.widths for axis in declaration.axes)
    mixes = growth_map.matrices is not None and declaration.stacked
    return not widens and not mixes and not _is_noisy(growth_map, declaration)


def fresh_layers(
    growth_map: GrowthMap, path: str, declaration: Declaration, targets: jax.Array
) -> jax.Array:
    """Makes new layers: functions of (seed, path, target layer) and of nothing else.

    Args:
      growth_map: says the seed and the depth.
      path: path of the leaf.
      declaration: of the leaf in the target.
      targets: `[n]` int32, the target layers (of a leaf without layers: any one).

    Returns:
      `[n, …]` as the paper's initialiser makes them.
    """
    layers = growth_map.target.layers
    if declaration.stacked:
        return init_leaf(path, declaration, layers, "paper", growth_map.seed, targets)
    return init_leaf(path, declaration, layers, "paper", growth_map.seed)[None]


def grow_layers(
    values: jax.Array,
    growth_map: GrowthMap,
    path: str,
    declaration: Declaration,
    targets: jax.Array,
    arrays: Arrays | None = None,
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

    Returns:
      `[n, …]` in the target's shape.
    """
    grown = values
    if growth_map.matrices is not None:
        grown = dense.mix_positions(values, growth_map, path, declaration, arrays or {})
    elif any(axis in growth_map.widths for axis in declaration.axes):
        grown = _widen(values, growth_map, path, declaration, targets)
    if _is_noisy(growth_map, declaration):
        grown = _with_noise(grown, growth_map, path, declaration, targets)
    return grown.astype(values.dtype)


def _widen(
    values: jax.Array,
    growth_map: GrowthMap,
    path: str,
    declaration: Declaration,
    targets: jax.Array,
) -> jax.Array:
    grown = values
    is_new = {True: np.zeros((), bool), False: np.zeros((), bool)}  # by "contracted"
    for at, axis in inner_axes(declaration):
        if axis not in growth_map.widths:
            continue
        widening = growth_map.widths[axis]
        index = np.asarray(widening.index)
        grown = jnp.take(grown, np.maximum(index, 0), axis=at)
        contracted = sums_over(declaration, axis)
        if contracted:
            grown = grown * along(np.asarray(widening.weights, grown.dtype), at, grown.ndim)
        is_new[contracted] = is_new[contracted] | along(index == NEW, at, grown.ndim)
    grown = grown * _factor(growth_map, declaration)
    if growth_map.pair_noise:
        grown = grown + _paired_noise(growth_map, path, declaration, targets, values.shape)
    if growth_map.new == "zero":
        blank = 1 if declaration.scales_stream else 0
        grown = jnp.where(is_new[False], jnp.asarray(blank, grown.dtype), grown)
        drawn = is_new[True]
    else:
        drawn = is_new[True] | is_new[False]
    if drawn.any():
        fresh = fresh_layers(growth_map, path, declaration, targets)
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
) -> jax.Array:
    """Mixes in ε of variance 1/(d·l²) for output projections and 2/(5d) for the others."""
    width, layers = growth_map.target.embed, growth_map.target.layers
    variance = 1 / (width * layers**2) if declaration.writes_stream else 2 / (5 * width)
    noise = _normal(growth_map.seed, f"{path}:noise", declaration, targets, values.shape[1:])
    share = growth_map.noise
    return values * np.float32(1 - share) + noise * np.float32(share * math.sqrt(variance))


def _normal(
    seed: int, name: str, declaration: Declaration, targets: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """Returns standard normal values `[n, …]`, functions of (seed, name, target layer)."""
    key = leaf_key(seed, name)
    return jax.vmap(
        lambda layer: jax.random.normal(jax.random.fold_in(key, layer), shape, declaration.dtype)
    )(targets)


def inner_axes(declaration: Declaration) -> list[tuple[int, str]]:
    """Returns (dimension, logical axis) of `[n, …]` arrays."""
    axes = declaration.axes[1:] if declaration.stacked else declaration.axes
    return list(enumerate(axes, start=1))


def sums_over(declaration: Declaration, axis: str) -> bool:
    """Returns whether growth weights the copies along an axis, which the parameter sums over."""
    # A tied embedding also contracts its width, but what it produces must be whole copies: the
    # weights go into the norm before the head.
    return axis in declaration.contracts and not declaration.looks_up


def along(vector: np.ndarray, at: int, ndim: int) -> np.ndarray:
    """Returns a vector as an array of `ndim` dimensions that lies along one of them."""
    return vector.reshape([-1 if axis == at else 1 for axis in range(ndim)])


def _factor(growth_map: GrowthMap, declaration: Declaration) -> np.ndarray:
    """Returns what keeps the function: of norms, and of queries whose softmax scale changed."""
    factor = np.ones((), np.float32)
    if declaration.scales_stream:
        factor = factor * np.float32(growth_map.norm_scale)
        if growth_map.target.tied and not declaration.stacked:
            weights = np.asarray(growth_map.widths["embed"].weights, np.float32)
            factor = factor * weights[None]
    if declaration.makes_queries and "head_dim" in growth_map.widths:
        wider = growth_map.target.head_dim / growth_map.source.head_dim
        factor = factor * np.float32(math.sqrt(wider))
    return factor


def _paired_noise(
    growth_map: GrowthMap,
    path: str,
    declaration: Declaration,
    targets: jax.Array,
    source_shape: tuple[int, ...],
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
    for at, _ in split:
        shape[at - 1] = source_shape[at]
    noise = _normal(growth_map.seed, f"{path}:pairs", declaration, targets, tuple(shape))
    for at, widening in split:
        noise = jnp.take(noise, np.maximum(np.asarray(widening.index), 0), axis=at)
        signs = np.asarray(widening.pair_signs(), np.float32)
        noise = noise * along(signs, at, noise.ndim)
    scale = standard_deviation(declaration, growth_map.target.layers, "paper")
    return noise * np.float32(scale * growth_map.pair_noise)
