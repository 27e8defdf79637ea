"""The interface shared by all formats: leaves by their prts_jax paths, read layer by layer."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ModelConfig
from prts_jax.declaration import Declaration, Kind
from prts_jax.errors import UserError
from prts_jax.model.architecture import declare
from prts_jax.paths import as_path
from prts_jax.special_ids import SpecialIds

Tensor = TypeVar("Tensor")
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)"
    r"(?:_orig_mod|_forward_module|module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
_META = "consolidated."
META_REMEDY = (
    "a model in Meta's own format; fetch its folder for transformers, or convert it with "
    "transformers' convert_llama_weights_to_hf.py"
)
_TILE = 256  # elements per side


@dataclass(frozen=True)
class TensorShape:
    """The shape, dtype name and size in bytes of a stored tensor."""

    shape: tuple[int, ...]
    dtype: str
    nbytes: int


@dataclass(frozen=True)
class ModelSource:
    """A model in some format, opened without reading its weights.

    Attributes:
      dtype: of the weights; the most frequent one if they differ.
      dtypes: leaf path → dtype of each layer; a leaf that is left out has `dtype`.
      read: (leaf path, layer or None) → values in the stored dtype and the leaf's declared shape,
        without the layer axis. Holds one stored tensor in memory at a time.
      length: longest supported sequence, in tokens; 0 if unknown.
      folder: folder that may hold `TOKENIZER_FILES`; "" if there is none.
      repeats: values that an export to transformers repeats: "special_ids" and
        "config_dtype", those of config.json, and "generation_config"; a key is absent if its file
        is.
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
    dtypes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    special_ids: SpecialIds = field(default_factory=SpecialIds)
    repeats: Mapping[str, Any] = field(default_factory=dict)

    def dtype_of(self, path: str, layer: int | None) -> str:
        """Returns the dtype of one layer of a leaf."""
        return self.dtypes[path][layer or 0] if path in self.dtypes else self.dtype


def without_wrappers(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Removes the prefixes that torch.compile and parallel training add to names, in any order.

    Raises:
      UserError: two names are then the same.
    """
    bare: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = _WRAPPERS.sub("", name)
        if short in bare:
            raise UserError(f"{where}: {short}: is stored twice, as {name} too; keep one of them")
        bare[short] = tensor
    return bare


def from_torch(weight: np.ndarray, declaration: Declaration) -> np.ndarray:
    """Converts a weight of torch to one layer of a leaf; a linear one is `[out, in]`.

    The leaf's contracted axes come first, and their product is `in`.
    """
    if not is_linear(declaration):
        return weight
    return transposed(weight).reshape(declaration.layer_shape)


def to_torch(layer: np.ndarray, declaration: Declaration) -> np.ndarray:
    """Converts one layer of a leaf to a weight of torch; the inverse of `from_torch`."""
    if not is_linear(declaration):
        return layer
    return transposed(layer.reshape(declaration.fan_in, -1))


def torch_shape(declaration: Declaration) -> tuple[int, ...]:
    """Returns the shape of one layer of a leaf as a weight of torch."""
    shape = declaration.layer_shape
    if not is_linear(declaration):
        return shape
    return (math.prod(shape) // declaration.fan_in, declaration.fan_in)


def transposed(matrix: np.ndarray) -> np.ndarray:
    """Returns the row-major transpose of a matrix, copied tile by tile to stay in the cache.

    NumPy copies whole columns, where each element lies in another page of memory.
    """
    rows, columns = matrix.shape
    result = np.empty((columns, rows), matrix.dtype)
    for row in range(0, rows, _TILE):
        for column in range(0, columns, _TILE):
            tile = matrix[row : row + _TILE, column : column + _TILE]
            result[column : column + _TILE, row : row + _TILE] = tile.T
    return result


def is_linear(declaration: Declaration) -> bool:
    """Returns whether a leaf is a linear map, not a norm or an embedding table."""
    return bool(declaration.contracts) and declaration.kind is not Kind.TABLE


def leaf_layers(model: ModelConfig) -> list[tuple[str, int | None]]:
    """Returns (path, layer) for each layer of each leaf; layer is None if the leaf has none."""
    layers: list[tuple[str, int | None]] = []
    for path, declaration in declare(model).items():
        layers += (
            [(path, at) for at in range(model.layers)] if declaration.stacked else [(path, None)]
        )
    return layers


def refuse_meta(folder: str) -> None:
    """Refuses a folder in the format in which Meta and Mistral publish weights.

    Raises:
      UserError: it holds params.json or consolidated weights.
    """
    root = as_path(folder)
    files = [file.name for file in root.iterdir()] if root.is_dir() else []
    own = sorted(name for name in files if name == "params.json" or name.startswith(_META))
    if own:
        raise UserError(f"{folder}: holds {own[0]}, so it is {META_REMEDY}")


def check_shape(
    where: str, name: str, stored: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    """Checks the shape of a stored tensor, None if it is missing, against the model's config.

    Raises:
      UserError: the tensor is missing or has another shape.
    """
    if stored is None:
        raise UserError(
            f"{where}: {name}: is missing; its config says {list(expected)}; the file is not whole "
            "or is no Llama"
        )
    if tuple(stored) != tuple(expected):
        raise UserError(
            f"{where}: {name}: has shape {list(stored)}, and its config says {list(expected)}; are "
            "the two of one model?"
        )
