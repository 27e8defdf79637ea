"""Digests of arrays: 64 bits for each (leaf, layer), computed on the array's devices.

A digest is two sums, modulo 2^32, over the elements of one layer of a leaf; each term mixes the
element's bits with its row-major index inside the layer. Sums commute, so the digest does not
depend on the sharding of the array or on the index of the layer (a copied layer keeps its digest);
the element index makes it depend on the order of the elements. For a fixed index the mix is a
bijection of the bits, so a change of any one element always changes the digest.

Digests detect damage, not tampering: they are not a cryptographic hash. The mixing constants are
those of MurmurHash3's 32-bit finaliser (A. Appleby) and of Knuth's multiplicative hash.
"""

import functools
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.checkpoint.damage import DamagedError
from prts_jax.declaration import LAYERS, Declaration
from prts_jax.tree import flatten, named_leaves

_MURMUR_1, _MURMUR_2, _KNUTH = 0x85EBCA6B, 0xC2B2AE35, 0x9E3779B1
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}
_BLOCK = 1 << 15  # elements mixed at once in NumPy, so that temporaries stay in the cache


def digests(
    params: Mapping[str, Any], declarations: Mapping[str, Declaration]
) -> dict[str, tuple[str, ...]]:
    """Returns the digest of every layer of every leaf, computed on the devices that hold it.

    Arrays may span processes; every process gets the whole result.

    Args:
      params: nested dict of arrays (1, 2 or 4 bytes per element), `[layers, …]` where stacked.
      declarations: path → declaration, for each leaf of `params`.

    Returns:
      path → one digest (16 hexadecimal digits) per layer; one digest for a leaf that is not
      stacked.
    """
    leaves = flatten(params)
    return _start(leaves, {path: declarations[path].stacked for path in leaves})()


def optimizer_digests(optimizer: Any) -> dict[str, tuple[str, ...]]:
    """Returns the digests of an optimizer's state, as `digests` does for parameters.

    Args:
      optimizer: any tree of arrays; a leaf with "layers" in its path is stacked.

    Returns:
      path, as `prts_jax.tree.named_leaves` names it, → digests.
    """
    return start_digests({}, optimizer)[1]()


def start_digests(params: Mapping[str, Any], optimizer: Any) -> tuple["Started", "Started"]:
    """Starts to compute the digests of parameters and optimizer state on their devices.

    Returns at once; the arrays may be donated to later computations. Processes that share the
    arrays must all call it.

    Args:
      params: nested dict of arrays; a leaf with "layers" in its path is stacked.
      optimizer: any tree of arrays; the same rule.

    Returns:
      Two functions, which wait for the results and return them as `digests` and
      `optimizer_digests` do; a thread in the background may call them.
    """
    # Orbax stores no leaves without elements.
    moments = {path: leaf for path, leaf in named_leaves(optimizer).items() if leaf.size}
    return _start_named(flatten(params)), _start_named(moments)


Started = Callable[[], dict[str, tuple[str, ...]]]
"""Waits for digests and returns them: path → one digest for each layer."""


def _start_named(leaves: Mapping[str, Any]) -> Started:
    return _start(
        leaves,
        {path: LAYERS in path.split("/") and leaf.ndim > 0 for path, leaf in leaves.items()},
    )


def _start(leaves: Mapping[str, Any], stacked: Mapping[str, bool]) -> Started:
    # One program for each shape: parameters and the optimizer's moments share theirs.
    replicated = _replicated(leaves.values())
    sums = {}
    for path, leaf in leaves.items():
        sums[path] = _digest_function(stacked[path], replicated)(leaf)
        if jax.default_backend() == "cpu" and jax.device_count() > 1:
            # CPU devices run programs at once, and collectives of two programs can wait for each
            # other for ever; accelerators run one program after another.
            sums[path].block_until_ready()

    def wait() -> dict[str, tuple[str, ...]]:
        return {
            path: tuple(_hexadecimal(*pair) for pair in layers)
            for path, layers in jax.device_get(sums).items()
        }

    return wait


class LayerDigest:
    """Computes the digest of one layer of a leaf in NumPy, block by block.

    >>> layer = np.arange(12, dtype=np.float32).reshape(4, 3)
    >>> digest = LayerDigest((4, 3))
    >>> digest.update(layer[:, :2], origin=(0, 0))
    >>> digest.update(layer[:, 2:], origin=(0, 2))
    >>> digest.hexdigest() == digest_of(layer)
    True
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        self._first = 0
        self._second = 0

    def update(self, block: np.ndarray, origin: tuple[int, ...]) -> None:
        """Adds a box of the layer's elements; boxes may come in any order.

        Args:
          block: has as many axes as the layer, and 1, 2 or 4 bytes per element.
          origin: index of the block's first element in the layer.
        """
        if block.ndim == 0:
            block, origin, strides = block[None], (0,), [1]
        else:
            strides = self._strides
        bits = np.ascontiguousarray(block).view(_BITS[block.dtype.itemsize])
        inside = _row_major_index(block.shape[1:], origin[1:], strides[1:])
        rows = max(1, _BLOCK // max(inside.size, 1))
        for start in range(0, block.shape[0], rows):
            part = bits[start : start + rows].reshape(-1, inside.size)
            first_row = np.arange(part.shape[0], dtype=np.uint64) + np.uint64(origin[0] + start)
            index = (first_row * np.uint64(strides[0])).astype(np.uint32)[:, None] + inside
            first, second = _mix(part.astype(np.uint32), index)
            self._first += int(first.sum(dtype=np.uint64))
            self._second += int(second.sum(dtype=np.uint64))

    def hexdigest(self) -> str:
        """Returns the digest of the boxes added so far, 16 hexadecimal digits."""
        return _hexadecimal(self._first & 0xFFFFFFFF, self._second & 0xFFFFFFFF)


def digest_of(layer: np.ndarray) -> str:
    """Returns the digest of one whole layer (or unstacked leaf) held in memory."""
    digest = LayerDigest(layer.shape)
    digest.update(layer, origin=(0,) * layer.ndim)
    return digest.hexdigest()


def first_difference(
    expected: Mapping[str, tuple[str, ...]], actual: Mapping[str, tuple[str, ...]]
) -> str:
    """Returns the first difference of two sets of digests ("layers/mlp/up, layer 3"), or ""."""
    for path in sorted(expected.keys() | actual.keys()):
        ours, theirs = expected.get(path, ()), actual.get(path, ())
        if len(ours) != len(theirs):
            return path
        for layer, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            if one != other:
                return f"{path}, layer {layer}" if len(ours) > 1 else path
    return ""


def check_digests(
    checkpoint: str,
    expected: Mapping[str, tuple[str, ...]],
    actual: Mapping[str, tuple[str, ...]],
    item: str = "params",
) -> None:
    """Compares the digests of the values read with those in the lineage.

    Raises:
      DamagedError: the digests differ (names the leaf and the layer).
    """
    if where := first_difference(expected, actual):
        raise not_what_was_saved(checkpoint, where, item)


def check_paths(
    checkpoint: str, item: str, expected: Mapping[str, tuple[str, ...]], stored: Collection[str]
) -> None:
    """Compares the paths of the leaves on disk with those that have digests in the lineage.

    Args:
      checkpoint: path of the checkpoint.
      item: "params", "optimizer" or "ema".
      expected: digests in the lineage; none in older checkpoints, which pass.
      stored: paths on disk; leaves without elements are not stored.

    Raises:
      DamagedError: a leaf is missing, or there is one more (names it).
    """
    saved = {path for path, layers in expected.items() if layers}
    for path in sorted(saved ^ set(stored)) if expected else ():
        state = "is missing" if path in saved else "was not saved with it"
        raise DamagedError(
            checkpoint,
            item,
            f"{checkpoint}/{item}: {path}: {state}; the files are damaged, use another checkpoint",
        )


def not_what_was_saved(checkpoint: str, where: str, item: str = "params") -> DamagedError:
    """Returns the error for values whose digest differs from the one in the lineage."""
    of = "" if item == "params" else f"{item}: "
    return DamagedError(
        checkpoint,
        item,
        f"{checkpoint}: {of}{where}: is not what was saved (digests differ); the files are "
        "damaged, use another checkpoint",
    )


def _mix(bits: Any, index: Any) -> tuple[Any, Any]:
    """Mixes elements' bits with their indices (uint32 arrays of NumPy or JAX) into two words."""
    key = index * np.uint32(_KNUTH)
    key = (key ^ (key >> np.uint32(15))) * np.uint32(_MURMUR_2)
    first = (bits ^ key) * np.uint32(_MURMUR_1)
    first = (first ^ (first >> np.uint32(13))) * np.uint32(_MURMUR_2)
    first = first ^ (first >> np.uint32(16))
    second = (first + key) * np.uint32(_MURMUR_1)
    second = (second ^ (second >> np.uint32(15))) * np.uint32(_KNUTH)
    return first, second ^ (second >> np.uint32(16))


def _row_major_index(
    shape: tuple[int, ...], origin: tuple[int, ...], strides: list[int]
) -> np.ndarray:
    """Returns the flattened row-major indices (uint32, modulo 2^32) of a box's elements."""
    index = np.zeros(shape, np.uint64)
    for axis, (size, start, stride) in enumerate(zip(shape, origin, strides, strict=True)):
        positions = (np.arange(size, dtype=np.uint64) + np.uint64(start)) * np.uint64(stride)
        index += positions.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    return index.astype(np.uint32).reshape(-1)


@functools.lru_cache(maxsize=16)
def _digest_function(stacked: bool, replicated: jax.sharding.Sharding | None) -> Any:
    def sums(leaf: jax.Array) -> jax.Array:
        return _layer_sums(leaf if stacked else leaf[None])

    return jax.jit(sums, out_shardings=replicated)


def _layer_sums(leaf: jax.Array) -> jax.Array:
    """Returns the two sums of each layer: `[layers, …]` → `[layers, 2]`, uint32."""
    bits = jax.lax.bitcast_convert_type(leaf, _BITS[leaf.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(leaf.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(1, leaf.ndim)):
        position = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
        index = index + position * np.uint32(stride & 0xFFFFFFFF)
        stride *= leaf.shape[axis]
    # One reduction for both sums reads the leaf once; two are ten times slower on CPU.
    zero, inside = np.uint32(0), tuple(range(1, leaf.ndim))
    sums = jax.lax.reduce(_mix(bits, index), (zero, zero), _add_pairs, inside)
    return jnp.stack(sums, axis=-1)


def _add_pairs(ours: Any, theirs: Any) -> tuple[Any, Any]:
    return ours[0] + theirs[0], ours[1] + theirs[1]


def _replicated(leaves: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding that replicates the result on every process; None without a mesh."""
    for leaf in leaves:
        sharding = getattr(leaf, "sharding", None)
        if isinstance(sharding, jax.sharding.NamedSharding):
            return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return None


def _hexadecimal(first: int, second: int) -> str:
    return f"{int(first):08x}{int(second):08x}"
