"""A keyed pseudo-random permutation of 0 … size-1 without a table.

A Feistel network permutes the next power of four; an index that lands beyond `size` is permuted
again until it is inside (cycle walking: Black and Rogaway, "Ciphers with arbitrary finite domains",
2002). Memory and time for one index do not depend on `size`.
"""

import hashlib

import numpy as np

ROUNDS = 8
MIN_HALF_BITS = 3  # tiny domains leave a Feistel network few permutations to choose from


def permute(indices: np.ndarray, size: int, key: str) -> np.ndarray:
    """Permutes integers of [0, size), of any shape: int64, distinct for distinct indices.

    Each key, any text, gives another permutation.
    """
    half_bits = max(MIN_HALF_BITS, ((size - 1).bit_length() + 1) // 2)
    keys = np.frombuffer(hashlib.shake_256(key.encode()).digest(8 * ROUNDS), "<u8")
    permuted = np.asarray(indices, np.uint64).reshape(-1)
    permuted = _feistel(permuted, keys, half_bits)
    outside = np.flatnonzero(permuted >= size)
    while outside.size:
        permuted[outside] = _feistel(permuted[outside], keys, half_bits)
        outside = outside[permuted[outside] >= size]
    return permuted.astype(np.int64).reshape(np.shape(indices))


def _feistel(values: np.ndarray, keys: np.ndarray, half_bits: int) -> np.ndarray:
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> np.uint64(half_bits), values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & mask)
    return (left << np.uint64(half_bits)) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
