"""What every format of a Llama's weights has in common: leaves by our names, a layer at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ModelConfig
from prts_jax.declaration import Declaration, Kind
from prts_jax.errors import UserError
from prts_jax.model.architecture import declare

_TILE = 256  # elements a side


@dataclass(frozen=True)
class TensorShape:
    """A tensor as it is stored: its shape and the name of its dtype."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class ModelSource:
    """A model in some format, opened without reading its weights.

    Attributes:
      format: "hf", "litgpt" or "orbax".
      path: its folder or file.
      model: its shape.
      dtype: of the weights, the commonest where they differ.
      tensors: what is stored, by the format's own names.
      read: (path of a leaf of ours, layer or None) → values in the leaf's declared shape without
        the layer axis, in the stored dtype. One stored tensor is in memory at a time.
      length: longest sequence that its makers allow; 0 where nothing says.
      folder: where `TOKENIZER_FILES` may lie; "" if nowhere.
      lineage: of a checkpoint of ours; None of anything else.
    """

    format: str
    path: str
    model: ModelConfig
    dtype: str
    tensors: Mapping[str, TensorShape]
    read: Callable[[str, int | None], np.ndarray] = field(repr=False)
    length: int = 0
    folder: str = ""
    lineage: Lineage | None = None


def kernel_from_linear(weight: np.ndarray, declaration: Declaration) -> np.ndarray:
    """Turns `[out, in]`, as torch stores a linear map, into a leaf of one layer.

    Args:
      weight: `[out, in]`.
      declaration: of the leaf; the axes that it contracts come first, and are `in` together.
    """
    return transposed(weight).reshape(layer_shape(declaration))


def linear_from_kernel(kernel: np.ndarray, declaration: Declaration) -> np.ndarray:
    """The inverse of `kernel_from_linear`."""
    return transposed(kernel.reshape(declaration.fan_in, -1))


def transposed(matrix: np.ndarray) -> np.ndarray:
    """Returns `[n, m]` of `[m, n]`, row-major: tile by tile, so that both sides stay in the cache.

    NumPy alone walks down whole columns, each element in another page of memory.
    """
    rows, columns = matrix.shape
    result = np.empty((columns, rows), matrix.dtype)
    for row in range(0, rows, _TILE):
        for column in range(0, columns, _TILE):
            tile = matrix[row : row + _TILE, column : column + _TILE]
            result[column : column + _TILE, row : row + _TILE] = tile.T
    return result


def layer_shape(declaration: Declaration) -> tuple[int, ...]:
    """Returns the shape of one layer of a leaf, or of a leaf without layers."""
    return declaration.shape[1:] if declaration.stacked else declaration.shape


def is_linear(declaration: Declaration) -> bool:
    """Whether a leaf is a linear map: not a norm and not a table of rows."""
    return bool(declaration.contracts) and declaration.kind is not Kind.TABLE


def pieces(model: ModelConfig) -> list[tuple[str, int | None]]:
    """Returns (path, layer or None) of everything that conversion moves at once, in order."""
    found: list[tuple[str, int | None]] = []
    for path, declaration in declare(model).items():
        found += (
            [(path, at) for at in range(model.layers)] if declaration.stacked else [(path, None)]
        )
    return found


def check_shape(
    where: str, name: str, found: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    """Refuses a tensor that is not what the model's config says.

    Args:
      where: the file or folder.
      name: of the tensor, in its own format.
      found: its shape; None if it is not there.
      expected: the shape by the config.

    Raises:
      UserError: it is missing or has another shape.
    """
    if found is None:
        raise UserError(
            f"{where}: {name}: is missing; its config says {list(expected)}; the file is not whole "
            "or is no Llama"
        )
    if tuple(found) != tuple(expected):
        raise UserError(
            f"{where}: {name}: has shape {list(found)}, and its config says {list(expected)}; are "
            "the two of one model?"
        )
