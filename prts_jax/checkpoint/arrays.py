"""Access to a checkpoint's arrays through tensorstore, one layer of one leaf at a time.

Orbax reads and writes whole arrays. Growth of models larger than memory needs single layers, so
this file reads the arrays of Orbax (zarr3 arrays in one OCDBT database, "layers.mlp.up" for
"layers/mlp/up") and writes arrays that Orbax reads.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorstore as ts

from prts_jax.checkpoint.damage import reading
from prts_jax.checkpoint.layout import PARAMS
from prts_jax.declaration import Declaration
from prts_jax.paths import as_path, is_remote

METADATA = "_METADATA"
"""Orbax's file beside the arrays of an item that describes their tree."""

_DICT_KEY = 2
"""Orbax's code for a dictionary key in the metadata of a tree."""


@dataclass(frozen=True)
class StoredLeaf:
    """A leaf on disk.

    Attributes:
      shape: of the whole leaf.
      dtype: of its elements.
      chunk: shape of the smallest box that can be read.
      shard: shape of the box in one key of the database: one or more chunks.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    chunk: tuple[int, ...]
    shard: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Size of the values in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def shards(self) -> int:
        """Number of database keys that hold the values."""
        return math.prod(
            -(-size // step) for size, step in zip(self.shape, self.shard, strict=True)
        )

    def blocks(self) -> Iterator[tuple[slice, ...]]:
        """Yields the boxes of the chunk grid, in row-major order."""
        return boxes(self.shape, self.chunk)


def boxes(shape: tuple[int, ...], step: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
    """Yields boxes of shape `step` that tile a box of shape `shape`, in row-major order.

    Boxes at the far sides are cut to fit. A scalar is one box.
    """
    counts = [-(-size // side) for size, side in zip(shape, step, strict=True)]
    for index in np.ndindex(*counts):
        yield tuple(
            slice(number * side, min((number + 1) * side, size))
            for number, side, size in zip(index, step, shape, strict=True)
        )


def whole_chunks(shape: tuple[int, ...], chunk: tuple[int, ...], elements: int) -> tuple[int, ...]:
    """Returns the largest box of whole chunks with at most `elements`, at least one chunk.

    The box is extended along the last axes first, so that it is contiguous on disk.

    >>> whole_chunks((100, 8), (10, 4), 200)
    (20, 8)
    """
    box = list(chunk)
    for axis in reversed(range(len(shape))):
        others = math.prod(box) // box[axis]
        most = max(1, elements // (others * chunk[axis]))
        box[axis] = min(shape[axis], most * chunk[axis])
        if box[axis] < shape[axis]:
            break
    return tuple(box)


def split_rows(box: tuple[int, ...], elements: int) -> tuple[int, ...]:
    """Returns a box that tiles `box` along its first axis, with at most `elements` or one row.

    >>> split_rows((12, 10), 50)
    (4, 10)
    """
    if not box:
        return box
    row = math.prod(box[1:])
    parts = next(
        n
        for n in range(1, box[0] + 1)
        if box[0] % n == 0 and (box[0] // n * row <= elements or n == box[0])
    )
    return (box[0] // parts, *box[1:])


def open_leaf(checkpoint: str, path: str, item: str = PARAMS) -> ts.TensorStore:
    """Opens a leaf of a checkpoint's parameters, or of another item, for reading.

    Raises:
      DamagedError: the leaf is missing or its files are damaged.
      StorageError: the storage failed.
    """
    with reading(checkpoint, item, f"{checkpoint}: {path}"):
        return ts.open(_spec(checkpoint, path, item), read=True, context=_CONTEXT).result()


def describe(checkpoint: str, item: str = PARAMS) -> dict[str, StoredLeaf]:
    """Returns path → stored leaf of an item of a checkpoint, without reading values.

    Raises:
      DamagedError: the item is missing or damaged.
      StorageError: the storage failed.
    """
    file = as_path(checkpoint) / item / METADATA
    with reading(checkpoint, item, str(file)):
        keys = json.loads(file.read_text())["tree_metadata"].values()
        paths = ["/".join(key["key"] for key in entry["key_metadata"]) for entry in keys]
    leaves = {}
    for path in sorted(paths):
        array = open_leaf(checkpoint, path, item)
        grid = array.schema.chunk_layout
        chunk, shard = (
            tuple(size or 1 for size in part.shape or ())
            for part in (grid.read_chunk, grid.write_chunk)
        )
        leaves[path] = StoredLeaf(array.shape, array.dtype.numpy_dtype, chunk, shard)
    return leaves


def create_leaf(
    checkpoint: str,
    path: str,
    declaration: Declaration,
    chunk: tuple[int, ...],
    item: str = PARAMS,
) -> ts.TensorStore:
    """Creates a leaf and opens it for writing.

    Args:
      checkpoint: directory of an unfinished checkpoint.
      path: path of the leaf.
      declaration: its shape and dtype.
      chunk: shape of a chunk.
      item: of the checkpoint: parameters or the optimizer's state.
    """
    metadata = {
        "shape": list(declaration.shape),
        "data_type": declaration.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}],
        "fill_value": 0,
    }
    spec = _spec(checkpoint, path, item) | {
        "metadata": metadata,
        "store_data_equal_to_fill_value": True,
    }
    return ts.open(spec, create=True, write=True, context=_CONTEXT).result()


def write_tree(
    checkpoint: str, declarations: Mapping[str, Declaration], item: str = PARAMS
) -> None:
    """Writes the tree metadata that Orbax reads beside the arrays."""
    tree = {}
    for path, declaration in declarations.items():
        keys = tuple(path.split("/"))
        tree[str(keys)] = {
            "key_metadata": [{"key": key, "key_type": _DICT_KEY} for key in keys],
            "value_metadata": {
                "value_type": "np.ndarray",  # plain restores need no device then
                "skip_deserialize": False,
                "write_shape": list(declaration.shape),
            },
        }
    description = {
        "tree_metadata": tree,
        "use_ocdbt": True,
        "use_zarr3": True,
        "store_array_data_equal_to_fill_value": True,
        "custom_metadata": None,
    }
    (as_path(checkpoint) / item / METADATA).write_text(json.dumps(description))


# With one shared cache, all arrays of a database share one writer. Separate writers would contend
# for the manifest, and each retry costs a round trip to the object store.
_CONTEXT = ts.Context({"cache_pool": {"total_bytes_limit": 2**24}})


def folder_in_database(path: str) -> str:
    """Returns the prefix of a leaf's keys: "layers.mlp.up/" for "layers/mlp/up"."""
    return path.replace("/", ".") + "/"


def _spec(checkpoint: str, path: str, item: str) -> dict[str, Any]:
    base = files_below(f"{checkpoint}/{item}/")
    kvstore = {"driver": "ocdbt", "base": base, "path": folder_in_database(path)}
    return {"driver": "zarr3", "kvstore": kvstore}


def files_below(prefix: str) -> dict[str, Any]:
    """Returns tensorstore's spec of the files or objects whose names begin with `prefix`."""
    if is_remote(prefix):
        bucket, _, inside = prefix.removeprefix("gs://").partition("/")
        return {"driver": "gcs", "bucket": bucket, "path": inside}
    return {"driver": "file", "path": prefix}
