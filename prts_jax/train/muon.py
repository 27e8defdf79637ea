"""Muon: the momentum of each weight matrix, orthogonalised.

Source: Jordan et al., "Muon: an optimizer for hidden layers" (2024), and Liu et al. (arXiv
2502.16982) for the scale that makes AdamW's learning rates and weight decay hold for it.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh

from prts_jax import tree
from prts_jax.declaration import STREAM, Declaration, Kind
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
        updates = orthogonalize(tree.named_leaves(momenta), declarations, dtype)
        return jax.tree.unflatten(jax.tree.structure(momenta), list(updates.values()))

    return optax.chain(optax.trace(momentum, nesterov=True), optax.stateless(update))


def orthogonalize(
    stacks: Mapping[str, jax.Array], declarations: Mapping[str, Declaration], dtype: str
) -> dict[str, jax.Array]:
    """Returns about U Vᵀ of each layer's matrix U S Vᵀ, times RMS · √(larger side).

    One side of a matrix has the axes that the parameter contracts, the other side the rest. On a
    mesh the devices exchange blocks in `dtype`, so that each has a few whole matrices, and exchange
    them back. All stacks of one shape are exchanged together, so that the devices share their
    matrices evenly; no device holds more than its share of them, padded to a multiple of the
    devices. (Left to the compiler, each device gathers whole stacks.)

    Args:
      stacks: path → [layers, …] with the axes of the parameter's declaration.
      declarations: path → declaration.
      dtype: of the matrix products and the exchanged blocks.

    Returns:
      path → array of the same shape, dtype and sharding, in the same order.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        updates = {}
        for path, stack in stacks.items():
            matrices = _folded(stack, declarations[path], dtype)
            updates[path] = _unfolded(_newton_schulz(matrices), stack, declarations[path])
        return updates
    specs = {path: partition_spec(declarations[path].axes) for path in stacks}
    own = partial(_of_own_matrices, declarations=declarations, dtype=dtype, mesh=mesh)
    return jax.shard_map(own, in_specs=(specs,), out_specs=specs, check_vma=False)(dict(stacks))


def _sides(declaration: Declaration) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Returns the axes of a matrix's rows and columns; the stream's are the rows.

    The update of a transposed matrix is the transposed update, so either side may be the rows.
    """
    axes = declaration.axes
    contracted = tuple(at for at, axis in enumerate(axes) if axis in declaration.contracts)
    others = tuple(at for at in range(1, len(axes)) if at not in contracted)
    return (others, contracted) if axes[others[0]] == STREAM else (contracted, others)


def _folded(stack: jax.Array, declaration: Declaration, dtype: str) -> jax.Array:
    """Returns [layers, rows, columns]."""
    rows, columns = _sides(declaration)
    sizes = [math.prod(stack.shape[at] for at in side) for side in (rows, columns)]
    return stack.transpose(0, *rows, *columns).reshape(len(stack), *sizes).astype(dtype)


def _unfolded(matrices: jax.Array, like: jax.Array, declaration: Declaration) -> jax.Array:
    """Returns the inverse of `_folded`, times RMS · √(larger side)."""
    rows, columns = _sides(declaration)
    larger = max(math.prod(declaration.shape[at] for at in side) for side in (rows, columns))
    order = (0, *rows, *columns)
    moved = matrices.reshape([like.shape[at] for at in order])
    update = moved.transpose([order.index(at) for at in range(like.ndim)]).astype(like.dtype)
    return RMS * math.sqrt(larger) * update


def _of_own_matrices(
    blocks: Mapping[str, jax.Array],
    declarations: Mapping[str, Declaration],
    dtype: str,
    mesh: AbstractMesh,
) -> dict[str, jax.Array]:
    """Orthogonalises a device's share of the matrices of which it holds a block each."""
    groups: dict[Any, list[str]] = {}
    for path, block in blocks.items():
        spec, sides = partition_spec(declarations[path].axes), _sides(declarations[path])
        # Only the first axis of a side is split: a head's dimension never is.
        split = tuple(spec[side[0]] for side in sides)
        shape = _folded(block, declarations[path], dtype).shape[1:]
        groups.setdefault((split, shape), []).append(path)
    updates: dict[str, jax.Array] = {}
    for (split, _), paths in groups.items():
        folded = [_folded(blocks[path], declarations[path], dtype) for path in paths]
        update = _exchanged(jnp.concatenate(folded), split, mesh)
        ends = list(itertools.accumulate(len(stack) for stack in folded))
        for path, stack in zip(paths, jnp.split(update, ends[:-1]), strict=True):
            updates[path] = _unfolded(stack, blocks[path], declarations[path])
    return {path: updates[path] for path in blocks}


def _exchanged(
    stack: jax.Array, split: Sequence[str | tuple[str, ...] | None], mesh: AbstractMesh
) -> jax.Array:
    """Exchanges blocks [matrices, rows, columns] for whole matrices, updates, exchanges back."""
    splits = [(at, names) for at, names in enumerate(split, start=1) if names is not None]
    used = {name for _, names in splits for name in _tuple(names)}
    copies = tuple(name for name in mesh.axis_names if name not in used)
    shares = math.prod(mesh.shape[name] for name in copies)
    count, parts = len(stack), shares * math.prod(mesh.shape[name] for name in used)
    stack = jnp.pad(stack, ((0, -count % parts), (0, 0), (0, 0)))
    for at, names in splits:
        stack = jax.lax.all_to_all(stack, names, split_axis=0, concat_axis=at, tiled=True)
    size = len(stack) // shares
    stack = jax.lax.dynamic_slice_in_dim(stack, jax.lax.axis_index(copies) * size, size)
    stack = jax.lax.all_gather(_newton_schulz(stack), copies, tiled=True)
    for at, names in reversed(splits):
        stack = jax.lax.all_to_all(stack, names, split_axis=at, concat_axis=0, tiled=True)
    return stack[:count]


def _tuple(names: str | tuple[str, ...]) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else names


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
