"""Dense growth: every target layer mixes all source layers, every position all source positions.

Source: Du et al., arXiv 2405.15319, App. A, eqs 37-42; the factoring into width and depth is that
of LiGO (Wang et al., "Learning to Grow Pretrained Models", ICLR 2023, arXiv 2303.00980).

With W of shape (out, in), source layers j and target layers i (B_a, B_b of the axes that widen):

    W_i' = Σ_j D_ij (B_a W_j B_bᵀ), with a D of its own for every leaf that has layers

    E' = E B_eᵀ            W_head' = W_head B_eᵀ      μ' = B_e μ
    W_Q' = B_Q W_Q B_eᵀ    W_K' = B_K W_K B_eᵀ        W_V' = B_V W_V B_eᵀ    W_O' = B_e W_O R(B_V)ᵀ
    W_up' = B_m W_up B_eᵀ  W_gate' = B_m W_gate B_eᵀ  W_down' = B_e W_down B_mᵀ

B_Q, B_K and B_V act on heads × head_dim as one axis, as the paper's do: a target head may mix heads
and components of the source. Under grouped queries W_O has more inputs than W_V outputs: query
head (group k, member g) passes on values of key head k. So R(B_V) applies B_V to each member g by
itself, and a group keeps its number of queries.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.declaration import LAYERS, STREAM, Declaration
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Arrays

VALUES = "v"
"""Last part of the path of the projection whose outputs the output projection beside it reads."""

HEADS = ("heads", "kv_heads")


class MatrixShape(NamedTuple):
    """Positions (or layers) of the target, of the source, and the logical axis of a matrix."""

    rows: int
    columns: int
    axis: str


def depth_name(path: str) -> str:
    """Returns the name of a leaf's D, `[target layers, source layers]`."""
    return f"depth/{path}"


def width_names(growth_map: GrowthMap, path: str, declaration: Declaration) -> dict[str, str]:
    """Returns logical axis → name of its B, for the axes of a leaf that widen.

    Heads stand for heads × head_dim.
    """
    names = {}
    for axis in declaration.axes:
        if axis not in growth_map.widths:
            continue
        if axis not in HEADS:
            names[axis] = f"width/{axis}"
        elif axis in declaration.contracts:
            names[axis] = f"width/{path.rpartition('/')[0]}/{VALUES}"
        else:
            names[axis] = f"width/{path}"
    return names


def matrix_shapes(
    growth_map: GrowthMap, declarations: Mapping[str, Declaration]
) -> dict[str, MatrixShape]:
    """Returns the shape of every matrix that a dense map has, by name."""
    source, target = growth_map.source, growth_map.target
    shapes = {}
    for path, declaration in declarations.items():
        if declaration.stacked:
            shapes[depth_name(path)] = MatrixShape(target.layers, source.layers, LAYERS)
        for axis, name in width_names(growth_map, path, declaration).items():
            if axis in HEADS and axis in declaration.contracts:
                continue  # the values' own
            size = source.head_dim if axis in HEADS else 1
            shapes[name] = MatrixShape(
                getattr(target, axis) * size, getattr(source, axis) * size, axis
            )
    return dict(sorted(shapes.items()))


def arrays_of(growth_map: GrowthMap, declarations: Mapping[str, Declaration]) -> Arrays:
    """Returns the matrices to grow by; none for a map that is not dense.

    Raises:
      UserError: they were not read with the map, or are of other models.
    """
    if growth_map.matrices is None:
        return {}
    if not growth_map.matrices.digest:
        return initial(growth_map, declarations)
    arrays = growth_map.matrices.arrays
    if arrays is None:
        raise UserError(
            f"growth map: its matrices ({growth_map.matrices.digest[:12]}) were not read with it; "
            "give the checkpoint that has them"
        )
    check_shapes(growth_map, declarations, arrays)
    return arrays


def check_shapes(
    growth_map: GrowthMap, declarations: Mapping[str, Declaration], arrays: Arrays
) -> None:
    """Checks that matrices are those of a map.

    Raises:
      UserError: names the matrix and both shapes.
    """
    wanted = matrix_shapes(growth_map, declarations)
    for name in sorted(wanted.keys() | arrays.keys()):
        ours = wanted[name][:2] if name in wanted else "none"
        theirs = tuple(arrays[name].shape) if name in arrays else "none"
        if ours != theirs:
            raise UserError(
                f"growth.matrices: {name}: is {theirs} in the file, and this growth needs {ours}; "
                "give matrices that were learned between models of these shapes"
            )


def initial(
    growth_map: GrowthMap, declarations: Mapping[str, Declaration]
) -> dict[str, np.ndarray]:
    """Returns the matrices that learning starts from: G_stack in depth, an uneven split in width.

    D is the identity, tiled: `D_ij = 1` where the map's layer i copies j. B is the identity, tiled,
    its rows times s: for the c copies of a position with shares u_1, u_2, … (the map's),

        B_Q, B_K: s = 1                   every copy of a head attends as it did
        B_V:      s = u / √(Σ u²)         it occurs twice, in W_V and in W_O
        B_m:      s = u / (Σ u³)^(1/3)    three times; exact but for silu's curvature
        B_e:      s = u √(√(Σ u² d/D) / Σ u³)   in a weight, in μ and in what the norm divides by

    so that every sum over copies is about what it was (exactly so without B_m, by an integer factor
    of the stream, but for the norm's epsilon). The shares are uneven, or gradients of copies would
    be equal for ever.
    """
    arrays = {}
    for name, shape in matrix_shapes(growth_map, declarations).items():
        matrix = np.zeros((shape.rows, shape.columns), np.float32)
        if shape.axis == LAYERS:
            matrix[np.arange(shape.rows), np.asarray(growth_map.layers)] = 1
        else:
            widening = growth_map.widths[shape.axis]
            index = np.asarray(widening.index)
            scale = _copy_scale(name, shape.axis, index, np.asarray(widening.weights), growth_map)
            each = growth_map.source.head_dim if shape.axis in HEADS else 1
            inside = np.tile(np.arange(each), len(index))
            matrix[np.arange(shape.rows), np.repeat(index, each) * each + inside] = np.repeat(
                scale, each
            )
        arrays[name] = matrix
    return arrays


def _copy_scale(
    name: str, axis: str, index: np.ndarray, shares: np.ndarray, growth_map: GrowthMap
) -> np.ndarray:
    def summed(power: int) -> np.ndarray:  # over the copies of each target position's original
        return np.bincount(index, shares**power)[index]

    if axis == STREAM:
        narrower = growth_map.source.embed / growth_map.target.embed
        return shares * np.sqrt(np.sqrt(summed(2) * narrower) / summed(3))
    if axis in HEADS:
        return shares / np.sqrt(summed(2)) if name.endswith(f"/{VALUES}") else np.ones(len(index))
    return shares / np.cbrt(summed(3))


def mix_layers(depth: jax.Array, layers: jax.Array) -> jax.Array:
    """Mixes source layers: D `[n, l]`, a leaf `[l, …]` → `[n, …]`."""
    return jnp.tensordot(depth, layers, axes=1, precision=jax.lax.Precision.HIGHEST)


def mix_positions(
    values: jax.Array,
    growth_map: GrowthMap,
    path: str,
    declaration: Declaration,
    arrays: Arrays,
) -> jax.Array:
    """Applies the B of every axis of a leaf that widens: `[n, …]` in the target's shape.

    `values` are `[n, …]` in the source's shape; n is 1 for a leaf without layers. `arrays` has at
    least the matrices that `width_names` names.
    """
    inner = declaration.axes[1:] if declaration.stacked else declaration.axes
    for axis, name in width_names(growth_map, path, declaration).items():
        at = 1 + inner.index(axis)
        if axis in HEADS:
            # W_O's inputs repeat B for each query of a group.
            queries = growth_map.target.heads // growth_map.target.kv_heads
            members = queries if axis in declaration.contracts else 1
            values = _mix_heads(arrays[name], values, at, members)
        else:
            values = _mix(arrays[name], values, at)
    return values


def learning_flops(growth_map: GrowthMap, declarations: Mapping[str, Declaration]) -> int:
    """FLOPs of the map's own products in one step of its learning, forward and backward.

    Each product costs its size forward and again for its matrix's gradient, and a third time for
    the gradient of what goes into it, except where that is the frozen source.
    """
    source, total = growth_map.source, 0
    shapes = matrix_shapes(growth_map, declarations)
    for path, declaration in declarations.items():
        names = list(width_names(growth_map, path, declaration).values())
        if declaration.stacked:
            names.insert(0, depth_name(path))
        elements = math.prod(getattr(source, axis) for axis in declaration.axes)
        for number, name in enumerate(names):
            total += (3 if number else 2) * 2 * elements * shapes[name].rows
            elements = elements * shapes[name].rows // shapes[name].columns
    return total


def _mix(matrix: jax.Array, values: jax.Array, at: int) -> jax.Array:
    mixed = jnp.tensordot(values, matrix, axes=(at, 1), precision=jax.lax.Precision.HIGHEST)
    return jnp.moveaxis(mixed, -1, at)


def _mix_heads(matrix: jax.Array, values: jax.Array, at: int, members: int) -> jax.Array:
    """Mixes heads × head_dim (dimensions at, at + 1), for each member of a group by itself."""
    before, (heads, head_dim), after = values.shape[:at], values.shape[at : at + 2], values.shape
    grouped = values.reshape(*before, heads // members, members, head_dim, *after[at + 2 :])
    joint = jnp.moveaxis(grouped, at + 1, -1)
    joint = joint.reshape(*before, heads // members * head_dim, *after[at + 2 :], members)
    mixed = _mix(matrix, joint, at)
    mixed = mixed.reshape(*before, -1, head_dim, *after[at + 2 :], members)
    mixed = jnp.moveaxis(mixed, -1, at + 1)
    return mixed.reshape(*before, -1, head_dim, *after[at + 2 :])
