"""Gates: what they keep of the function, when they open, what they multiply, and folding."""

import dataclasses
import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.declaration import Declaration, Kind
from prts_jax.errors import UserError
from prts_jax.growth.gates import fold_gates, gates_after, opening, refuse_shut
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import make_map
from prts_jax.growth.widening import NEW
from prts_jax.model.architecture import declare, logits
from prts_jax.model.inputs import Gates
from prts_jax.tree import flatten, unflatten
from tests.growth import one_device

COMPUTE = ComputeConfig(dtype="float32", attention="xla")
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 48, (2, 12)), jnp.int32)
SOURCE = ModelConfig(vocab=48, layers=2, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24)
WIDER = "embed=24,mlp=40,heads=8,kv_heads=4"
HEADS = {4: "heads=8,kv_heads=8", 2: "heads=8,kv_heads=4", 1: "heads=6"}


@functools.partial(jax.jit, static_argnums=1)  # tests of one shape share its compilation
def apply(params, model: ModelConfig, gates: Gates):
    return logits(params, TOKENS, model, COMPUTE, gates=gates)


@functools.cache
def params_of(source: ModelConfig):
    rng = np.random.default_rng(0)
    return unflatten({path: draw(leaf, rng) for path, leaf in declare(source).items()})


def draw(declaration: Declaration, rng: np.random.Generator) -> np.ndarray:
    """Values of the size that training gives them; norms differ from one, too."""
    if declaration.init == "ones":
        return rng.uniform(0.5, 1.5, declaration.shape).astype(np.float32)
    deviation = (
        0.4 / (declaration.shape[-1] if declaration.kind is Kind.TABLE else declaration.fan_in)
    ) ** 0.5
    return rng.normal(0, deviation, declaration.shape).astype(np.float32)


def grow(growth_map: GrowthMap):
    """`[[W, A], [B, C]]` in NumPy: copies where the map says so, else something random."""
    rng = np.random.default_rng(1)
    indices = {axis: widening.index for axis, widening in growth_map.widths.items()}
    indices["layers"] = growth_map.layers
    source, grown = flatten(params_of(growth_map.source)), {}
    for path, declaration in declare(growth_map.target).items():
        fresh = draw(declaration, rng)
        old, is_new = source.get(path, fresh), np.zeros(declaration.shape, bool)
        for at, axis in enumerate(declaration.axes):
            if axis in indices:
                index = np.asarray(indices[axis])
                old = old.take(np.maximum(index, 0), axis=at)
                is_new |= (index == NEW).reshape([-1 if i == at else 1 for i in range(old.ndim)])
        if declaration.scales_stream:
            old = old * np.float32(growth_map.norm_scale)
        grown[path] = np.where(is_new, fresh, old)
    return unflatten(grown)


def grow_on_mesh(growth_map: GrowthMap):
    return one_device.grow(params_of(growth_map.source), growth_map)


def change_of_logits(growth_map: GrowthMap, gates: Gates, grow=grow) -> float:
    """Largest difference of the logits, relative to the largest logit."""
    before = apply(params_of(growth_map.source), growth_map.source, Gates())
    after = apply(grow(growth_map), growth_map.target, gates)
    return float(jnp.abs(after - before).max() / jnp.abs(before).max())


def lineage_of(growth_map: GrowthMap, step: int, stage_step: int, at_step: int):
    """The part of a lineage that gates depend on, which grew at `at_step` and is at `step`."""
    stored = GrowthMap.from_json(json.loads(json.dumps(growth_map.to_json())))
    record = SimpleNamespace(at_step=at_step, map=stored)
    return SimpleNamespace(growth=[record], step=step, stage_step=stage_step)


# Function preservation (golden check 6)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
def test_fresh_layers_behind_shut_gates_change_not_one_bit_of_the_logits(kv_heads, tied):
    source = dataclasses.replace(SOURCE, kv_heads=kv_heads, tied=tied)
    growth_map = make_map(source, None, "random", factor=2, order="stack" if tied else "interleave")
    assert growth_map.function_preserving()
    assert change_of_logits(growth_map, gates_after(growth_map, 0)) == 0.0


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kv_heads", HEADS, ids=["MHA", "GQA", "MQA"])
def test_random_entries_behind_shut_gates_keep_the_function(kv_heads, tied):
    source = dataclasses.replace(SOURCE, kv_heads=kv_heads, tied=tied)
    widths = f"embed=24,mlp=40,{HEADS[kv_heads]}"
    growth_map = make_map(source, None, "random_width", widths=widths)
    assert growth_map.function_preserving()
    assert change_of_logits(growth_map, gates_after(growth_map, 0)) <= 2e-6


def test_what_the_mesh_grows_in_width_and_depth_keeps_the_function_too():
    source = dataclasses.replace(SOURCE, tied=True)
    growth_map = make_map(source, None, "random_width", widths=WIDER, factor=2, seed=3)
    assert growth_map.function_preserving()
    assert change_of_logits(growth_map, gates_after(growth_map, 0), grow_on_mesh) <= 2e-6


@pytest.mark.parametrize("widths", ["mlp=36", "heads=6,kv_heads=3", "heads=8", "embed=48"])
def test_each_axis_alone_keeps_the_function(widths):
    growth_map = make_map(SOURCE, None, "random_width", widths=widths)
    assert growth_map.function_preserving()
    assert change_of_logits(growth_map, gates_after(growth_map, 0)) <= 2e-6


def test_a_model_without_layers_grows_some_behind_gates():
    none = dataclasses.replace(SOURCE, layers=0)
    growth_map = make_map(none, SOURCE, "random")
    assert growth_map.function_preserving()
    assert change_of_logits(growth_map, gates_after(growth_map, 0)) == 0.0


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("random", {"factor": 2}),
        ("random_width", {"widths": "embed=24"}),
        ("random_width", {"widths": "mlp=36"}),
        ("random_width", {"widths": "heads=8,kv_heads=4"}),
    ],
)
def test_without_gates_the_function_is_not_kept_and_the_map_says_so(operator, options):
    growth_map = make_map(SOURCE, None, operator, gate_steps=0, **options)
    assert not growth_map.gates
    assert not growth_map.function_preserving()
    assert change_of_logits(growth_map, Gates()) > 1e-3


# When they open


def test_gates_open_in_the_order_of_msg():
    """MLP and depth over [0, T), the stream over [T, 2T), heads over [2T, 3T)."""
    growth_map = make_map(SOURCE, None, "random_width", widths=WIDER, factor=2, gate_steps=10)
    expected = {"layers": (0, 10), "mlp": (0, 10), "embed": (10, 20), "heads": (20, 30)}
    assert growth_map.gates == expected

    def new(steps):
        gates = gates_after(growth_map, steps)
        return [float(g[-1]) for g in (gates.layers_L, gates.mlp_M, gates.embed_E, gates.heads_H)]

    assert new(0) == [0, 0, 0, 0]
    np.testing.assert_allclose(new(3), [0.3, 0.3, 0, 0], rtol=1e-6)
    assert new(10) == [1, 1, 0, 0]
    np.testing.assert_allclose(new(19), [1, 1, 0.9, 0], rtol=1e-6)
    assert new(25) == [1, 1, 1, 0.5]
    assert new(30) == new(10**6) == [1, 1, 1, 1]


def test_what_was_there_is_always_open_and_heads_open_by_whole_query_groups():
    growth_map = make_map(SOURCE, None, "random_width", widths=WIDER, factor=2)
    gates = gates_after(growth_map, 0)
    np.testing.assert_array_equal(gates.heads_H, [1, 1, 1, 1, 0, 0, 0, 0])
    np.testing.assert_array_equal(gates.embed_E, [1] * 16 + [0] * 8)
    np.testing.assert_array_equal(gates.mlp_M, [1] * 24 + [0] * 16)
    np.testing.assert_array_equal(gates.layers_L, [1, 0, 1, 0])
    within = gates_after(make_map(SOURCE, None, "random_width", widths="heads=8"), 0)
    np.testing.assert_array_equal(within.heads_H, [1, 1, 0, 0, 1, 1, 0, 0])


@given(st.integers(1, 10**6), st.integers(0, 10**7), st.integers(0, 10**7))
def test_gates_only_ever_open_and_are_exactly_shut_and_open_at_the_ends(steps, a, b):
    growth_map = make_map(SOURCE, None, "random", factor=2, gate_steps=steps)

    def gate(at):
        return float(gates_after(growth_map, at).layers_L[1])

    assert 0 <= gate(min(a, b)) <= gate(max(a, b)) <= 1
    assert (gate(0), gate(steps)) == (0, 1)


def test_traced_steps_give_the_same_gates():
    growth_map = make_map(SOURCE, None, "random_width", widths=WIDER, gate_steps=7)
    traced = jax.jit(lambda steps: gates_after(growth_map, steps))(jnp.int32(9))
    for ours, theirs in zip(traced, gates_after(growth_map, 9), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_lineage_has_gates_until_the_last_is_open():
    growth_map = make_map(SOURCE, None, "random", factor=2, gate_steps=10)
    actual = opening(lineage_of(growth_map, step=104, stage_step=4, at_step=100))
    assert actual is not None
    assert actual.end == 10
    np.testing.assert_allclose(actual.at(4).layers_L[1], 0.4, rtol=1e-6)
    assert opening(lineage_of(growth_map, step=110, stage_step=10, at_step=100)) is None
    stacked = make_map(SOURCE, None, "stack", factor=2)
    assert opening(lineage_of(stacked, step=100, stage_step=0, at_step=100)) is None
    assert opening(SimpleNamespace(growth=(), step=5, stage_step=5)) is None


def test_a_stage_that_begins_without_growth_does_not_shut_them_again():
    growth_map = make_map(SOURCE, None, "random", factor=2, gate_steps=10)
    actual = opening(lineage_of(growth_map, step=106, stage_step=0, at_step=100))
    assert actual is not None
    np.testing.assert_allclose(actual.at(0).layers_L[1], 0.6, rtol=1e-6)
    assert actual.end == 4


def test_growing_a_model_with_shut_gates_is_refused_in_one_line():
    growth_map = make_map(SOURCE, None, "random", factor=2, gate_steps=10)
    refuse_shut(lineage_of(growth_map, step=110, stage_step=10, at_step=100), "runs/a")
    with pytest.raises(UserError, match=r"runs/a: is at step 107, .* only at step 110") as no:
        refuse_shut(lineage_of(growth_map, step=107, stage_step=7, at_step=100), "runs/a")
    assert "\n" not in str(no.value)


# The outputs that gates multiply


def scaled(params, **factors: jax.Array):
    """Scales output projections' inputs or outputs by hand."""
    leaves = flatten(params)
    for path, einsum in (("layers/attention/o", "lhde"), ("layers/mlp/down", "lme")):
        for axis, factor in factors.items():
            if axis in einsum:
                leaves[path] = jnp.einsum(f"{einsum},{axis}->{einsum}", leaves[path], factor)
    if "e" in factors:
        leaves["token_embedding"] = leaves["token_embedding"] * factors["e"]
    return unflatten(leaves)


@pytest.mark.parametrize(
    ("gate", "axis", "size"),
    [("layers_L", "l", 2), ("embed_E", "e", 16), ("mlp_M", "m", 24), ("heads_H", "h", 4)],
)
def test_a_gate_scales_what_is_summed_as_its_weights_would(gate, axis, size):
    factor = jnp.asarray(np.random.default_rng(2).uniform(0, 1, size), jnp.float32)
    actual = apply(params_of(SOURCE), SOURCE, Gates(**{gate: factor}))
    expected = apply(scaled(params_of(SOURCE), **{axis: factor}), SOURCE, Gates())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * float(jnp.abs(actual).max()))
    assert jnp.abs(actual - apply(params_of(SOURCE), SOURCE, Gates())).max() > 1e-2


def test_open_gates_are_no_gates():
    growth_map = make_map(SOURCE, None, "random_width", widths=WIDER, factor=2)
    params = grow(growth_map)
    opened = apply(params, growth_map.target, gates_after(growth_map, 10**6))
    np.testing.assert_array_equal(opened, apply(params, growth_map.target, Gates()))


@pytest.mark.parametrize("changes", [{"remat": "full"}, {"scan": False}, {"dtype": "bfloat16"}])
def test_gates_are_the_same_however_the_model_is_computed(changes):
    growth_map = make_map(SOURCE, None, "random_width", widths=WIDER, factor=2, gate_steps=4)
    params, gates = grow(growth_map), gates_after(growth_map, 6)
    compute = dataclasses.replace(COMPUTE, **changes)
    actual = logits(params, TOKENS, growth_map.target, compute, gates=gates)
    expected = np.asarray(apply(params, growth_map.target, gates))
    tolerance = 3e-2 if compute.dtype == "bfloat16" else 1e-6
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def test_behind_a_shut_gate_nothing_learns_and_behind_a_half_open_one_everything_does():
    growth_map = make_map(SOURCE, None, "random", factor=2, gate_steps=10)

    @jax.jit
    @jax.grad
    def gradient(params, gates):
        return jnp.square(apply(params, growth_map.target, gates)).mean()

    def gradients(steps):
        actual = flatten(gradient(grow(growth_map), gates_after(growth_map, steps)))
        return {path: leaf for path, leaf in actual.items() if path.startswith("layers/")}

    assert all(not leaf[1::2].any() and leaf[::2].any() for leaf in gradients(0).values())
    assert all(leaf[1].any() and leaf[3].any() for leaf in gradients(5).values())


# Folding for exports


def test_folded_depth_gates_give_the_same_logits_whatever_they_are():
    growth_map = make_map(SOURCE, None, "random", factor=2, gate_steps=10)
    params, gates = grow(growth_map), gates_after(growth_map, 3)
    folded = fold_gates(params, gates, declare(growth_map.target))
    actual = apply(folded, growth_map.target, Gates())
    expected = apply(params, growth_map.target, gates)
    atol = 1e-6 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)
    assert jnp.abs(expected - apply(params, growth_map.target, Gates())).max() > 100 * atol


def test_open_gates_of_width_fold_into_nothing():
    growth_map = make_map(SOURCE, None, "random_width", widths=WIDER, factor=2, gate_steps=10)
    params, declarations = grow(growth_map), declare(growth_map.target)
    for gates in (None, gates_after(growth_map, 30)):
        folded = flatten(fold_gates(params, gates, declarations))
        for path, leaf in flatten(params).items():
            np.testing.assert_array_equal(folded[path], leaf)


@pytest.mark.parametrize(
    ("steps", "named"), [(4, "embed are open by 0%"), (15, "embed are open by 50%")]
)
def test_half_open_gates_of_width_are_not_exported(steps, named):
    growth_map = make_map(SOURCE, None, "random_width", widths="embed=24,mlp=40", gate_steps=10)
    with pytest.raises(UserError, match=named) as no:
        fold_gates(grow(growth_map), gates_after(growth_map, steps), declare(growth_map.target))
    assert "\n" not in str(no.value)


# As data


def test_gates_survive_json_are_in_the_digest_and_are_said():
    growth_map = make_map(SOURCE, None, "random_width", widths=WIDER, factor=2)
    assert GrowthMap.from_json(json.loads(json.dumps(growth_map.to_json()))) == growth_map
    assert growth_map.digest() != dataclasses.replace(growth_map, gates={}).digest()
    assert "gates of new heads open over steps 2000 to 3000 after growth" in str(growth_map)
    assert "gates" not in make_map(SOURCE, None, "stack", factor=2).to_json()


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ({"layers": (5, 5)}, "gates of layers open from step 5 to 5; give a later end"),
        ({"layers": (-1, 5)}, "give a later end"),
        ({"mlp": (0, 5)}, "gates of 'mlp'; only new positions"),
        ({"kv_heads": (0, 5)}, "gates of 'kv_heads'; only new positions"),
    ],
)
def test_gates_that_cannot_be_are_refused(gates, message):
    growth_map = make_map(SOURCE, None, "random", factor=2)
    with pytest.raises(UserError, match=message):
        dataclasses.replace(growth_map, gates=gates).validate()


@pytest.mark.parametrize(
    ("operator", "options", "message"),
    [
        ("random", {"factor": 2, "gate_steps": -1}, "growth.gate_steps: is -1; give how many"),
        ("stack", {"factor": 2, "gate_steps": 5}, "'stack' takes no gate_steps"),
        ("random_width", {"widths": "head_dim=8"}, "gates do not keep attention scores"),
    ],
)
def test_what_gates_cannot_do_is_refused(operator, options, message):
    with pytest.raises(UserError, match=message):
        make_map(SOURCE, None, operator, **options)
