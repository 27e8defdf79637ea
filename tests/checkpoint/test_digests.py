"""Digests: the same on a device and in NumPy, and different for whatever differs."""

import dataclasses

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prts_jax.checkpoint.digests import (
    LayerDigest,
    digest_of,
    digests,
    first_difference,
    start_digests,
)
from prts_jax.declaration import Declaration, Kind
from prts_jax.model.architecture import ARCHITECTURES, declare
from tests.checkpoint.tiny import MODEL, random_params


def declared(*shape: int, stacked: bool = True) -> Declaration:
    names = ("layers", "embed", "heads", "head_dim")[0 if stacked else 1 :]
    return Declaration(shape, "float32", names[: len(shape)], (), "linear", Kind.READER)


def random(*shape: int, dtype: type = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def on_device(leaf: np.ndarray, stacked: bool = True) -> tuple[str, ...]:
    return digests({"w": jnp.asarray(leaf)}, {"w": declared(*leaf.shape, stacked=stacked)})["w"]


def reference(layer: np.ndarray) -> str:
    """The digest by its definition, one element at a time, in Python's integers."""
    mask = 0xFFFFFFFF
    bits = layer.reshape(-1).view({2: np.uint16, 4: np.uint32}[layer.dtype.itemsize]).tolist()
    sums = [0, 0]
    for index, word in enumerate(bits):
        key = index * 0x9E3779B1 & mask
        key = (key ^ key >> 15) * 0xC2B2AE35 & mask
        first = (word ^ key) * 0x85EBCA6B & mask
        first = (first ^ first >> 13) * 0xC2B2AE35 & mask
        first ^= first >> 16
        second = (first + key) * 0x85EBCA6B & mask
        second = (second ^ second >> 15) * 0x9E3779B1 & mask
        second ^= second >> 16
        sums = [sums[0] + first & mask, sums[1] + second & mask]
    return f"{sums[0]:08x}{sums[1]:08x}"


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 2, 5), (1, 1), (2, 7, 300)])
def test_device_numpy_and_definition_agree(shape, dtype):
    leaf = random(*shape, dtype=dtype)
    expected = tuple(reference(layer) for layer in leaf)
    assert on_device(leaf) == expected
    assert tuple(digest_of(layer) for layer in leaf) == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_digests_by_path_are_those_by_declaration(architecture):
    model = dataclasses.replace(MODEL, architecture=architecture)
    params = random_params(declare(model))
    of_params, of_optimizer = start_digests(params, {"mu": params})
    expected = digests(params, declare(model))
    assert of_params() == expected
    assert of_optimizer() == {f"mu/{path}": layers for path, layers in expected.items()}


def test_a_leaf_that_is_not_stacked_has_one_digest():
    leaf = random(6, 5)
    assert on_device(leaf, stacked=False) == (reference(leaf),)


def test_digests_are_pinned():
    # Stored with every checkpoint: a change of the function would call them all damaged.
    assert digest_of(np.arange(6, dtype=np.float32).reshape(2, 3)) == "8f7e2f38cc837ded"


@given(st.integers(0, 59), st.integers(0, 31))
@settings(max_examples=200)
def test_any_flipped_bit_changes_the_digest(element, bit):
    layer = random(12, 5)
    damaged = layer.copy()
    damaged.reshape(-1).view(np.uint32)[element] ^= np.uint32(1 << bit)
    assert digest_of(damaged) != digest_of(layer)


def test_signs_of_zero_and_payloads_of_nan_count():
    assert digest_of(np.float32([0.0, 1.0])) != digest_of(np.float32([-0.0, 1.0]))
    quiet = np.uint32([0x7FC00000, 0x7FC00001]).view(np.float32)
    assert digest_of(quiet[:1]) != digest_of(quiet[1:])


@given(st.integers(0, 59), st.integers(0, 59))
def test_order_counts_inside_a_layer(one, other):
    layer = random(12, 5)
    swapped = layer.copy()
    flat = swapped.reshape(-1)
    flat[one], flat[other] = flat[other], flat[one]
    assert (digest_of(swapped) == digest_of(layer)) == (one == other)


def test_a_layers_place_in_the_stack_does_not_count():
    leaf = random(3, 4, 2, 5)
    turned = on_device(leaf[[2, 0, 1, 0]])
    first, second, third = on_device(leaf)
    assert turned == (third, first, second, first)


@given(st.permutations(range(6)), st.integers(1, 6), st.integers(1, 50))
def test_boxes_in_any_order_make_the_digest_of_the_whole(order, rows, columns):
    layer = random(6, 50, 3)
    digest = LayerDigest(layer.shape)
    boxes = [(a, b) for a in range(0, 6, rows) for b in range(0, 50, columns)]
    for spot in sorted(range(len(boxes)), key=lambda number: order[number % 6]):
        a, b = boxes[spot]
        digest.update(layer[a : a + rows, b : b + columns], origin=(a, b, 0))
    assert digest.hexdigest() == digest_of(layer)


def test_a_scalar_has_a_digest():
    assert digest_of(np.float32(2.5)) == reference(np.float32([2.5]))


def test_the_first_difference_names_leaf_and_layer():
    saved = {"a": ("1", "2"), "b": ("3",)}
    assert first_difference(saved, saved) == ""
    assert first_difference(saved, {"a": ("1", "0"), "b": ("3",)}) == "a, layer 1"
    assert first_difference(saved, {"a": ("1", "2"), "b": ("0",)}) == "b"
    assert first_difference(saved, {"a": ("1", "2")}) == "b"
