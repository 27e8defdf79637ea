"""Muon: the momentum of each weight matrix, orthogonalised.

Source: Jordan et al., "Muon: an optimizer for hidden layers" (2024), and Liu et al. (arXiv
2502.16982) for the scale that makes AdamW's learning rates and weight decay hold for it.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh

from prts_jax import tree
from prts_jax.declaration import Declaration, Kind
from prts_jax.mesh import partition_spec

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton–Schulz iteration: X ← aX + b(XXᵀ)X + c(XXᵀ)²X."""

ITERATIONS = 5

RMS = 0.2
"""Root mean square of an update, about that of AdamW's (arXiv 2502.16982, equation 4)."""


def is_matrix(declaration: Declaration) -> bool:
    """Returns whether Muon updates a parameter: the linear maps of the layers."""
    return declaration.stacked and declaration.kind not in (Kind.TABLE, Kind.NORM)


def scale_by_muon(
    declarations: Mapping[str, Declaration], momentum: float, dtype: str
) -> optax.GradientTransformation:
    """Returns Nesterov momentum followed by `orthogonalize`, for stacks of matrices.

    Args:
      declarations: path → declaration of the parameters, of which `is_matrix` holds.
      momentum: decay of the sum of gradients.
      dtype: of the matrix products: bfloat16 or float32.
    """

    def update(momenta: Any, params: Any = None) -> Any:
        del params
        return jax.tree_util.tree_map_with_path(
            lambda keys, leaf: orthogonalize(
                leaf,
                declarations[jax.tree_util.keystr(keys, simple=True, separator="/")],
                dtype,
            ),
            momenta,
        )

    return optax.chain(optax.trace(momentum, nesterov=True), optax.stateless(update))


def orthogonalize(stack: jax.Array, declaration: Declaration, dtype: str) -> jax.Array:
    """Returns about U Vᵀ of each layer's matrix U S Vᵀ, times RMS · √(larger side).

    The rows of a layer's matrix are the axes that the parameter contracts, its columns the others.
    On a mesh the devices exchange blocks, so that each has whole matrices of a few layers, and
    exchange them back: no device holds more than its share of the stack, padded to a multiple of
    the devices. (Left to the compiler, each device gathers the whole stack.)

    Args:
      stack: [layers, …] with the axes of `declaration`.
      declaration: of the parameter.
      dtype: of the matrix products.

    Returns:
      Array of the same shape, dtype and sharding.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return _of_whole_matrices(stack, declaration, dtype)
    spec = partition_spec(declaration.axes)
    own_layers = partial(_of_own_layers, declaration=declaration, dtype=dtype, mesh=mesh)
    return jax.shard_map(own_layers, in_specs=spec, out_specs=spec, check_vma=False)(stack)


def _of_own_layers(
    block: jax.Array, declaration: Declaration, dtype: str, mesh: AbstractMesh
) -> jax.Array:
    """Orthogonalises a device's share of the layers of a stack of which it holds a block."""
    spec = partition_spec(declaration.axes)
    splits = [(at, names) for at, names in enumerate(spec) if at and names is not None]
    used = {name for names in spec if names is not None for name in _tuple(names)}
    copies = tuple(name for name in mesh.axis_names if name not in used)
    layers, shares = len(block), math.prod(mesh.shape[n] for n in copies)
    parts = shares * math.prod(mesh.shape[n] for _, names in splits for n in _tuple(names))
    block = jnp.pad(block, ((0, -layers % parts), *[(0, 0)] * (block.ndim - 1)))
    for at, names in splits:
        block = jax.lax.all_to_all(block, names, split_axis=0, concat_axis=at, tiled=True)
    size = len(block) // shares
    block = jax.lax.dynamic_slice_in_dim(block, jax.lax.axis_index(copies) * size, size)
    block = _of_whole_matrices(block, declaration, dtype)
    block = jax.lax.all_gather(block, copies, tiled=True)
    for at, names in reversed(splits):
        block = jax.lax.all_to_all(block, names, split_axis=at, concat_axis=0, tiled=True)
    return block[:layers]


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


def _of_whole_matrices(stack: jax.Array, declaration: Declaration, dtype: str) -> jax.Array:
    axes = declaration.axes
    rows = [at for at, axis in enumerate(axes) if at and axis in declaration.contracts]
    columns = [at for at, axis in enumerate(axes) if at and axis not in declaration.contracts]
    order = (0, *rows, *columns)
    moved = stack.transpose(order)
    shape = [math.prod(stack.shape[at] for at in side) for side in (rows, columns)]
    update = _newton_schulz(moved.reshape(len(stack), *shape).astype(dtype)).astype(stack.dtype)
    update = RMS * math.sqrt(max(shape)) * update
    return update.reshape(moved.shape).transpose([order.index(at) for at in range(stack.ndim)])


def _newton_schulz(x_LxMxN: jax.Array) -> jax.Array:
    """Returns about U Vᵀ of each matrix; the products are of the smaller side."""
    if x_LxMxN.shape[1] > x_LxMxN.shape[2]:
        return _newton_schulz(x_LxMxN.mT).mT
    norm = jnp.linalg.norm(x_LxMxN.astype(jnp.float32), axis=(1, 2), keepdims=True)
    x = x_LxMxN / (norm + 1e-7).astype(x_LxMxN.dtype)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x


def labels(declarations: Mapping[str, Declaration]) -> dict[str, Any]:
    """Returns nested labels for `optax.partition`: "muon" for matrices, "adam" for the rest."""
    return tree.unflatten(
        {path: "muon" if is_matrix(d) else "adam" for path, d in declarations.items()}
    )
