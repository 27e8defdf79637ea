"""Fresh parameters: each value is a function of (seed, leaf path, layer, row), on any mesh."""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from prts_jax import tree
from prts_jax.declaration import Declaration


def leaf_key(seed: int, path: str) -> jax.Array:
    """Returns the random key of a parameter; fold in a layer's index for that layer's own."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(path.encode()))


def draw_rows(
    draw: Callable[[jax.Array, tuple[int, ...]], jax.Array],
    key: jax.Array,
    shape: tuple[int, ...],
    rows: jax.Array | None = None,
) -> jax.Array:
    """Draws an array, or some of its rows, each from a key of its own.

    Args:
      draw: (key, shape) → array, as `jax.random.normal`.
      key: random key of the array; row r is drawn from `fold_in(key, r)`.
      shape: of the whole array.
      rows: `[r]` int32, positions along its first axis; None draws all.

    Returns:
      `[r, …]`, or the whole array.
    """
    rows = jnp.arange(shape[0]) if rows is None else rows
    # Fused with the drawing, the keys make compilation half as long again.
    keys = jax.lax.optimization_barrier(jax.vmap(lambda row: jax.random.fold_in(key, row))(rows))
    return jax.vmap(lambda key: draw(key, shape[1:]))(keys)


def standard_deviation(declaration: Declaration, layers: int, kind: str) -> float:
    """Returns the standard deviation of a fresh parameter.

    The paper's (Du et al., arXiv 2405.15319): √(2 / (5 fan_in)), the embedding's fan_in being the
    width, and √(1 / fan_in) / layers for the down projection. "torch_default" is what the
    published scratch runs had: N(0, 1) embeddings, U(±1/√fan_in) for the rest.

    Args:
      declaration: of the parameter ("ones" has none: 0).
      layers: depth of the model.
      kind: "paper" or "torch_default".
    """
    if declaration.init == "ones":
        return 0.0
    width = declaration.shape[-1] if declaration.init == "embedding" else declaration.fan_in
    if kind == "torch_default":
        return 1.0 if declaration.init == "embedding" else math.sqrt(1 / (3 * width))
    if declaration.init == "down_projection":
        return math.sqrt(1 / width) / layers
    return math.sqrt(2 / (5 * width))


def init_leaf(
    path: str,
    declaration: Declaration,
    layers: int,
    kind: str,
    seed: int,
    indices: jax.Array | None = None,
    rows: jax.Array | None = None,
) -> jax.Array:
    """Makes a fresh parameter, or some of its layers, or some rows of these.

    Args:
      path: its path.
      declaration: of the parameter.
      layers: depth of the model (scales the down projections).
      kind: "paper" or "torch_default", see `standard_deviation`.
      seed: of the run.
      indices: `[n]` int32, the layers of a stacked parameter to make; None makes all.
      rows: `[r]` int32, the positions to make along a layer's first axis; None makes all.

    Returns:
      `[n, …]`, or the parameter's shape; with `rows`, r of them along that axis.
    """
    shape = declaration.layer_shape
    if indices is None and declaration.stacked:
        indices = jnp.arange(declaration.layers)
    if declaration.init == "ones":
        first = () if indices is None else indices.shape
        drawn = shape if rows is None else (*rows.shape, *shape[1:])
        return jnp.ones((*first, *drawn), declaration.dtype)
    scale = standard_deviation(declaration, layers, kind)
    uniform = kind == "torch_default" and declaration.init != "embedding"

    def draw(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        if uniform:
            bound = math.sqrt(3) * scale
            return jax.random.uniform(key, shape, declaration.dtype, -bound, bound)
        return scale * jax.random.normal(key, shape, declaration.dtype)

    key = leaf_key(seed, path)
    if indices is None:
        return draw_rows(draw, key, shape, rows)
    return jax.vmap(lambda layer: draw_rows(draw, jax.random.fold_in(key, layer), shape, rows))(
        indices
    )


def init_params(
    declarations: Mapping[str, Declaration],
    layers: int,
    kind: str,
    seed: int,
    shardings: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Makes the parameters of a fresh model, each shard on the device that keeps it.

    Args:
      declarations: from `prts_jax.model.architecture.declare`.
      layers: depth of the model (scales the down projections).
      kind: "paper" or "torch_default", see `standard_deviation`.
      seed: of the run.
      shardings: path → sharding; the default device if None.

    Returns:
      Nested dictionary of arrays.
    """

    def make() -> dict[str, jax.Array]:
        return {
            path: init_leaf(path, declaration, layers, kind, seed)
            for path, declaration in declarations.items()
        }

    out_shardings = None if shardings is None else dict(shardings)
    # On CPUs LLVM's last level draws the same bits as fast and compiles two to three times as long.
    quickly = {"xla_backend_optimization_level": 2} if jax.default_backend() == "cpu" else {}
    draw = jax.jit(make, out_shardings=out_shardings, compiler_options=quickly)
    return tree.unflatten(draw())
