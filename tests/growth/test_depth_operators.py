"""The rivals of G_stack in depth: lists worked out by hand, and exact function preservation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare, logits
from prts_jax.model.initialise import init_params
from prts_jax.tree import flatten, unflatten
from tests.checkpoint.tiny import random_params
from tests.growth.one_device import grow

COMPUTE = ComputeConfig(dtype="float32", attention="xla")
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 48, (2, 12)), jnp.int32)


@functools.partial(jax.jit, static_argnums=1)  # tests of one shape share its compilation
def apply(params, model: ModelConfig):
    return logits(params, TOKENS, model, COMPUTE)


def model(layers: int, **changes) -> ModelConfig:
    base = ModelConfig(vocab=48, layers=2, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24)
    return dataclasses.replace(base, layers=layers, **changes)


def copied_after_every_fourth() -> tuple[int, ...]:
    return tuple(layer for at in range(32) for layer in ([at, at] if at % 4 == 3 else [at]))


LISTS = [
    ("interpolate", 3, {"factor": 2}, (0, 0, 1, 1, 2, 2), ()),
    ("solar", 32, {"drop": 8}, (*range(24), *range(8, 32)), ()),
    ("block_expansion", 32, {"every": 4}, copied_after_every_fourth(), tuple(range(4, 40, 5))),
    ("middle", 6, {"block": 2}, (0, 1, 2, 3, 2, 3, 4, 5), ()),
    ("middle", 4, {"block": 1}, (0, 1, 1, 2, 3), ()),
    ("middle", 2, {"block": 2}, (0, 1, 0, 1), ()),
    ("last", 6, {"block": 3}, (0, 1, 2, 3, 4, 5, 3, 4, 5), ()),
    ("last", 9, {"block": 9}, (*range(9), *range(9)), ()),
    ("zero", 3, {"factor": 2}, (0, 0, 1, 1, 2, 2), (1, 3, 5)),
    ("zero", 2, {"factor": 3}, (0, 0, 0, 1, 1, 1), (1, 2, 4, 5)),
    ("zero", 3, {"factor": 2, "order": "stack"}, (0, 1, 2, 0, 1, 2), (3, 4, 5)),
    ("random", 3, {"factor": 2}, (0, -1, 1, -1, 2, -1), ()),
    ("random", 2, {"factor": 3, "order": "stack"}, (0, 1, -1, -1, -1, -1), ()),
]


@pytest.mark.parametrize(("operator", "source", "options", "layers", "zeroed"), LISTS)
def test_each_operator_makes_its_list(operator, source, options, layers, zeroed):
    growth_map = make_map(model(source), None, operator, **options)
    assert (growth_map.layers, growth_map.zeroed) == (layers, zeroed)
    assert growth_map.target == model(len(layers))


@pytest.mark.parametrize(("operator", "source", "options", "layers", "zeroed"), LISTS)
def test_the_number_can_come_from_the_target(operator, source, options, layers, zeroed):
    order = {key: value for key, value in options.items() if key == "order"}
    growth_map = make_map(model(source), model(len(layers)), operator, **order)
    assert (growth_map.layers, growth_map.zeroed) == (layers, zeroed)
    assert growth_map == make_map(model(source), None, operator, **options)


@pytest.mark.parametrize(
    ("operator", "options"),
    [
        ("zero", {"factor": 2}),
        ("zero", {"factor": 3, "order": "stack"}),
        ("block_expansion", {"every": 1}),
        ("block_expansion", {"every": 2}),
    ],
)
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kv_heads", [4, 2, 1], ids=["MHA", "GQA", "MQA"])
def test_zero_outputs_change_not_one_bit_of_the_logits(operator, options, kv_heads, tied):
    source = model(2, kv_heads=kv_heads, tied=tied)
    params = random_params(declare(source))
    growth_map = make_map(source, None, operator, **options)
    assert growth_map.function_preserving()
    before = apply(params, source)
    after = apply(grow(params, growth_map), growth_map.target)
    assert float(jnp.abs(after - before).max()) == 0.0


@pytest.mark.parametrize(
    ("operator", "options"),
    [("stack", {"factor": 2}), ("interpolate", {"factor": 2}), ("last", {"block": 1})],
)
def test_copies_with_their_outputs_change_the_function_and_the_map_says_so(operator, options):
    source = model(2)
    params = random_params(declare(source))
    growth_map = make_map(source, None, operator, **options)
    assert not growth_map.function_preserving()
    before = logits(params, TOKENS, source, COMPUTE)
    after = logits(grow(params, growth_map), TOKENS, growth_map.target, COMPUTE)
    assert float(jnp.abs(after - before).max()) > 1e-2 * float(jnp.abs(before).max())


def test_at_first_only_the_output_projections_of_zeroed_layers_learn():
    source = model(2)
    growth_map = make_map(source, None, "zero", factor=2)
    params = grow(random_params(declare(source)), growth_map)

    def loss(tree):
        return jnp.square(logits(tree, TOKENS, growth_map.target, COMPUTE)).mean()

    for path, gradient in flatten(jax.grad(loss)(params)).items():
        if not path.startswith("layers/"):
            continue
        learns = {bool(jnp.any(gradient[layer] != 0)) for layer in growth_map.zeroed}
        assert learns == {path in ("layers/attention/o", "layers/mlp/down")}, path


def test_the_outputs_are_told_by_their_declarations():
    outputs = {path for path, leaf in declare(model(2, tied=True)).items() if leaf.writes_stream}
    assert outputs == {"layers/attention/o", "layers/mlp/down"}


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_new_layers_are_those_of_a_fresh_model_of_that_seed(depth):
    source = model(depth)
    growth_map = make_map(source, model(4), "random", seed=7)
    params = random_params(declare(source))
    grown, old = flatten(grow(params, growth_map)), flatten(params)
    fresh = flatten(init_params(declare(model(4)), 4, "paper", 7))
    for path, leaf in grown.items():
        for at, layer in enumerate(growth_map.layers if path.startswith("layers/") else ()):
            expected = fresh[path][at] if layer == -1 else old[path][layer]
            np.testing.assert_allclose(leaf[at], expected, rtol=1e-6, err_msg=path)


def test_noise_is_the_share_and_the_size_that_the_paper_gives():
    source = model(2, embed=64, mlp=256)
    params = flatten(random_params(declare(source)))
    growth_map = make_map(source, None, "stack", factor=2, noise=0.2, seed=3)
    assert not growth_map.function_preserving()
    grown = flatten(grow(unflatten(params), growth_map))
    for path, variance in {
        "layers/mlp/down": 1 / (64 * 4**2),
        "layers/attention/o": 1 / (64 * 4**2),
        "layers/mlp/up": 2 / (5 * 64),
        "token_embedding": 2 / (5 * 64),
    }.items():
        old = params[path][jnp.arange(4) % 2] if path.startswith("layers/") else params[path]
        noise = (np.asarray(grown[path]) - 0.8 * np.asarray(old)) / 0.2
        assert noise.std() == pytest.approx(variance**0.5, rel=0.1), path
        assert abs(np.corrcoef(noise.ravel(), np.asarray(old).ravel())[0, 1]) < 0.1
    np.testing.assert_array_equal(grown["final_norm"], params["final_norm"])


@pytest.mark.parametrize(
    ("operator", "target", "options", "message"),
    [
        ("interpolate", None, {}, "growth.factor: is 0 and no target"),
        ("interpolate", model(8), {}, "no multiple of the source's 6; interpolate needs one"),
        ("solar", None, {}, "growth.drop: is 0 and no target"),
        ("solar", model(9), {}, "9 target layers are not twice 6 - m"),
        ("solar", model(14), {}, "14 target layers are not twice 6 - m"),
        ("solar", None, {"drop": 4}, "growth.drop: is 4.*give at most 3"),
        ("solar", None, {"drop": -1}, "growth.drop: is -1"),
        ("block_expansion", None, {}, "growth.every: is 0 and no target"),
        ("block_expansion", None, {"every": 4}, "growth.every: is 4.*divide the source's 6"),
        ("block_expansion", model(6), {}, "growth.every: is 0"),
        ("middle", None, {}, "growth.block: is 0 and no target"),
        ("middle", None, {"block": 4}, "growth.block: 4 does not divide the source's 6"),
        ("last", None, {"block": 7}, "growth.block: is 7; last copies 1 to 6"),
        ("last", model(6), {}, "growth.block: is 0; last copies 1 to 6"),
        ("last", model(8), {"block": 3}, "list has 9 layers and the target model.layers=8"),
        ("zero", None, {"factor": 2, "order": "stak"}, "growth.order: 'stak' is unknown; did you"),
        ("random", model(9), {}, "no multiple of the source's 6; random needs one"),
        ("stack", None, {"factor": 2, "noise": 1.5}, "growth.noise: is 1.5; a share of 0 to 1"),
        ("stack", None, {"factor": 2, "seed": 2}, "operator 'stack' takes no seed"),
        ("stack", None, {"factor": 2, "every": 2}, "operator 'stack' takes no every"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(operator, target, options, message):
    with pytest.raises(UserError, match=message) as caught:
        make_map(model(6), target, operator, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "operator", ["stack", "interpolate", "solar", "block_expansion", "middle", "last", "zero"]
)
def test_nothing_grows_from_no_layers_by_copying(operator):
    with pytest.raises(UserError):
        make_map(model(0), model(4), operator)
