"""Growth in width: exact where it says so, for every kind of attention, tied and untied."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prts_jax.config import ComputeConfig, ModelConfig, RopeScaling
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import make_map
from prts_jax.growth.wide_target import parse_widths
from prts_jax.growth.widening import NEW, Widening, partition
from prts_jax.model.architecture import logits
from prts_jax.tree import flatten
from tests.growth import one_device
from tests.growth.one_device import params_of

COMPUTE = ComputeConfig(dtype="float32", attention="xla")
TOKENS = jnp.asarray(np.random.default_rng(1).integers(0, 48, (2, 12)), jnp.int32)
SOURCE = ModelConfig(vocab=48, layers=2, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24)
KINDS = {
    "MHA": ({"kv_heads": 4}, "heads=8,kv_heads=8"),
    "GQA": ({"kv_heads": 2}, "heads=8,kv_heads=4"),
    "MQA": ({"kv_heads": 1}, "heads=8"),
}
PAIRS = [  # every operator with every kind of attention; tied and untied take turns
    pytest.param(*operator[1:], kind, (row + column) % 2 == 1, id=f"{operator[0]}, {kind}")
    for row, operator in enumerate(
        [
            ("even", "split", "embed=32,mlp=48", {}),
            ("uneven", "split", "embed=32,mlp=48", {"weights": "uneven"}),
            ("noise pairs", "split", "embed=32,mlp=48", {"pair_noise": 0.5, "seed": 3}),
            ("zero", "zero_width", "embed=24,mlp=40", {}),
            ("zero in depth too", "zero_width", "embed=24,mlp=40,head_dim=8", {"factor": 2}),
        ]
    )
    for column, kind in enumerate(KINDS)
]


@functools.partial(jax.jit, static_argnums=1)  # tests of one shape share its compilation
def apply(params, model: ModelConfig):
    return logits(params, TOKENS, model, COMPUTE)


@functools.cache
def logits_of(source: ModelConfig):
    return apply(params_of(source), source)


def grow(growth_map: GrowthMap):
    return one_device.grow(params_of(growth_map.source), growth_map)


def change_of_logits(growth_map: GrowthMap) -> float:
    """Largest difference of the logits, relative to the largest logit."""
    before = logits_of(growth_map.source)
    after = apply(grow(growth_map), growth_map.target)
    return float(jnp.abs(after - before).max() / jnp.abs(before).max())


@pytest.mark.parametrize(("operator", "widths", "options", "kind", "tied"), PAIRS)
def test_function_preserving_maps_keep_the_logits(operator, widths, options, kind, tied):
    changes, heads = KINDS[kind]
    source = dataclasses.replace(SOURCE, tied=tied, **changes)
    growth_map = make_map(source, None, operator, widths=f"{widths},{heads}", **options)
    assert growth_map.function_preserving()
    assert change_of_logits(growth_map) <= 2e-6


@pytest.mark.parametrize("operator", ["split", "zero_width"])
@pytest.mark.parametrize("widths", ["mlp=36", "heads=6,kv_heads=3", "heads=6", "embed=48"])
def test_an_axis_alone_and_heads_by_any_factor_keep_the_function(operator, widths):
    if (operator, widths) == ("split", "heads=6"):
        widths = "heads=8"
    growth_map = make_map(SOURCE, None, operator, widths=widths)
    assert growth_map.function_preserving()
    assert change_of_logits(growth_map) <= 2e-6


@pytest.mark.parametrize("scaling", [RopeScaling(), RopeScaling(factor=4.0, original_length=16)])
def test_head_dim_grows_by_zero_with_its_rotary_pairs_and_scale(scaling):
    source = dataclasses.replace(SOURCE, rope_scaling=scaling)
    growth_map = make_map(source, None, "zero_width", widths="head_dim=12,embed=24")
    assert growth_map.function_preserving()
    assert change_of_logits(growth_map) <= 2e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operator", "options"),
    [("split", {}), ("split", {"weights": "uneven"}), ("zero_width", {})],
    ids=["even", "uneven", "zero"],
)
def test_the_rounding_of_many_layers_stays_as_small(operator, options):
    source = dataclasses.replace(SOURCE, layers=32, embed=64, mlp=160, head_dim=16)
    widths = "embed=128,mlp=320,heads=8,kv_heads=4"
    growth_map = make_map(source, None, operator, widths=widths, **options)
    assert change_of_logits(growth_map) <= 2e-6


def test_width_and_depth_grow_together_by_zero():
    growth_map = make_map(SOURCE, None, "zero_width", widths="embed=24,mlp=32", factor=2)
    assert (growth_map.layers, growth_map.zeroed) == ((0, 0, 1, 1), (1, 3))
    assert growth_map.function_preserving()
    assert change_of_logits(growth_map) <= 2e-6


@pytest.mark.parametrize(
    ("operator", "widths", "options", "least"),
    [
        ("split", "embed=24", {}, 1e-3),  # 1.5 times: the norms see another mean square
        ("split", "embed=32", {"norm": "paper"}, 1e-2),
        ("zero_width", "embed=32", {"norm": "paper"}, 1e-5),  # the old epsilon
        ("random_width", "embed=32", {"gate_steps": 0}, 1e-2),
        ("split", "mlp=48", {"factor": 2}, 1e-3),
    ],
)
def test_maps_that_change_the_logits_are_not_called_function_preserving(
    operator, widths, options, least
):
    growth_map = make_map(SOURCE, None, operator, widths=widths, **options)
    assert not growth_map.function_preserving()
    assert change_of_logits(growth_map) > least


@pytest.mark.parametrize("weights", ["even", "uneven"])
def test_split_is_the_papers_product_of_matrices(weights):
    growth_map = make_map(SOURCE, None, "split", widths="embed=32,mlp=48", weights=weights)
    parts = (0.5, 0.5) if weights == "even" else (2 / 3, 1 / 3)

    def copies(size):  # [I; I]
        return np.concatenate([np.eye(size), np.eye(size)])

    def splits(size):  # [αI βI]
        return np.concatenate([part * np.eye(size) for part in parts], axis=1)

    old, new = flatten(params_of(SOURCE)), flatten(grow(growth_map))
    up = np.asarray(old["layers/mlp/up"], np.float64)  # ours is [in, out], the paper's [out, in]
    expected = np.einsum("oh,lih,ie->leo", copies(24), up, splits(16))
    np.testing.assert_allclose(new["layers/mlp/up"], expected, rtol=1e-6)
    down = np.asarray(old["layers/mlp/down"], np.float64)
    expected = np.einsum("eo,lho,hm->lme", copies(16), down, splits(24))
    np.testing.assert_allclose(new["layers/mlp/down"], expected, rtol=1e-6)
    np.testing.assert_array_equal(new["token_embedding"], old["token_embedding"] @ copies(16).T)
    np.testing.assert_array_equal(new["final_norm"], copies(16) @ old["final_norm"])


def test_query_groups_are_copied_whole():
    growth_map = make_map(SOURCE, None, "split", widths="heads=8,kv_heads=4")
    assert growth_map.widths["heads"].index == (0, 1, 2, 3, 0, 1, 2, 3)
    assert growth_map.widths["kv_heads"].index == (0, 1, 0, 1)
    alone = make_map(SOURCE, None, "split", widths="heads=8")
    assert alone.widths["heads"].index == (0, 1, 0, 1, 2, 3, 2, 3)


def test_zero_growth_is_the_papers_block_matrix():
    growth_map = make_map(SOURCE, None, "zero_width", widths="embed=24,mlp=32", seed=5)
    old, new = flatten(params_of(SOURCE)), flatten(grow(growth_map))
    up = np.asarray(new["layers/mlp/up"])  # [layers, in, out]
    np.testing.assert_array_equal(up[:, :16, :24], old["layers/mlp/up"])
    assert not up[:, :16, 24:].any()  # new outputs of old inputs
    assert up[:, 16:, :].all()  # A and C
    np.testing.assert_array_equal(new["token_embedding"][:, 16:], 0)
    np.testing.assert_allclose(new["final_norm"][:16], old["final_norm"] * (16 / 24) ** 0.5, 1e-6)
    assert growth_map.target.norm_eps == pytest.approx(SOURCE.norm_eps * 16 / 24)


def test_drawn_values_depend_on_the_seed_and_the_target_layer_alone():
    options = {"widths": "embed=24,mlp=32", "seed": 5}
    deep = flatten(grow(make_map(SOURCE, None, "random_width", **options, factor=2)))
    shallow = flatten(grow(make_map(SOURCE, None, "random_width", **options)))
    other = flatten(grow(make_map(SOURCE, None, "random_width", **options | {"seed": 6})))
    name = "layers/mlp/up"
    np.testing.assert_array_equal(deep[name][:2, 16:], shallow[name][:, 16:])
    assert (deep[name][0, 16:] != deep[name][2, 16:]).any()
    assert (other[name][:, 16:] != shallow[name][:, 16:]).all()


def test_equal_copies_learn_the_same_and_unequal_ones_part():
    def gradients(weights):
        growth_map = make_map(SOURCE, None, "split", widths="mlp=48", weights=weights)

        def loss(params):
            return jnp.square(logits(params, TOKENS, growth_map.target, COMPUTE)).mean()

        gradient = flatten(jax.grad(loss)(grow(growth_map)))["layers/mlp/up"]
        return gradient[..., :24], gradient[..., 24:]

    np.testing.assert_allclose(*gradients("even"), rtol=1e-5, atol=1e-9)
    first, second = gradients("uneven")
    np.testing.assert_allclose(first, 2 * second, rtol=1e-4, atol=1e-9)


def test_a_map_survives_json_compactly_and_is_drawn():
    source = dataclasses.replace(SOURCE, embed=1024)
    growth_map = make_map(source, None, "zero_width", widths="embed=2048,heads=8,kv_heads=4")
    text = json.dumps(growth_map.to_json())
    assert len(text) < 2000
    assert GrowthMap.from_json(json.loads(text)) == growth_map
    assert "embed 1024 → 2048 (0:1024,1024 new)" in str(growth_map)
    assert "heads 4 → 8 (0:4,4 new)" in str(growth_map)


@given(st.lists(st.integers(-1, 9), min_size=1, max_size=40), st.booleans())
def test_any_widening_survives_json_and_its_weights_are_a_partition(index, uneven):
    widening = partition(index, uneven)
    assert Widening.from_json(json.loads(json.dumps(widening.to_json()))) == widening
    assert widening.is_partition()
    sums = {}
    for spot, sign in zip(index, widening.pair_signs(), strict=True):
        sums[spot] = sums.get(spot, 0) + sign
        assert spot != NEW or sign == 0
    assert set(sums.values()) == {0}


@pytest.mark.parametrize(
    ("operator", "target", "options", "message"),
    [
        ("split", None, {}, "growth.widths: is empty and no target"),
        ("split", None, {"widths": "embd=32"}, "'embd' is no axis; did you mean 'embed'"),
        ("split", None, {"widths": "embed=x"}, "name each axis once, with its new size"),
        ("split", None, {"widths": "embed=32,embed=32"}, "name each axis once"),
        ("split", None, {"widths": "embed=8"}, "embed from 16 to 8; growth never shrinks"),
        ("split", None, {"widths": "heads=7"}, "7 heads do not divide among kv_heads=2"),
        ("split", None, {"widths": "heads=6,kv_heads=6"}, "from 2 to 1 query heads a key head"),
        ("split", None, {"widths": "head_dim=8"}, "splitting it is never function preserving"),
        ("zero_width", None, {"widths": "head_dim=6"}, "give a multiple of 4"),
        ("split", None, {"widths": "mlp=48", "weights": "od"}, "growth.weights: 'od' is unknown"),
        ("split", None, {"widths": "mlp=48", "norm": "papr"}, "did you mean 'paper'"),
        ("split", {"mlp": 48}, {"widths": "mlp=36"}, "mlp=36, but config.model.mlp is 48"),
        ("split", {"layers": 3, "mlp": 48}, {}, "from 2 to 3 layers; split keeps them"),
        ("split", {"vocab": 64, "mlp": 48}, {}, "config.model.vocab: 48 in the source, 64"),
        ("zero_width", {"embed": 32, "norm_eps": 1e-3}, {}, "zero_width makes it 5e-06"),
    ],
)
def test_impossible_widths_are_refused_in_one_line(operator, target, options, message):
    wanted = None if target is None else dataclasses.replace(SOURCE, **target)
    with pytest.raises(UserError, match=message) as caught:
        make_map(SOURCE, wanted, operator, **options)
    assert "\n" not in str(caught.value)


@given(st.text(alphabet="embdhas_kvlp=,0123456789 ", max_size=30) | st.text())
def test_any_text_is_widths_or_a_user_error(text):
    try:
        sizes = parse_widths(text)
    except UserError as error:
        assert "growth.widths" in str(error)
    else:
        assert all(size >= 0 for size in sizes.values())


def test_rms_norm_keeps_the_mean_square_of_sums_over_copies():
    """W of N(0, 1) times copies of x of N(0, 1): the mean square stays that of the source."""
    rng = np.random.default_rng(0)
    d = SOURCE.mlp
    for wider in (d * 3 // 2, 2 * d):
        wide = dataclasses.replace(SOURCE, mlp=wider)
        widening = make_map(SOURCE, wide, "split", norm="rms").widths["mlp"]
        weight = np.sqrt(d / (3 * wider - 2 * d))
        np.testing.assert_allclose(widening.weights, weight, rtol=1e-12)
        inputs, matrix = rng.standard_normal((4000, d)), rng.standard_normal((50, d))
        index = np.arange(wider) % d
        sums = inputs[:, index] @ (matrix[:, index] * weight).T
        np.testing.assert_allclose(np.mean(sums**2), d, rtol=0.1)


def test_rms_norm_of_new_positions_scales_old_columns_by_the_root_of_the_widths():
    wide = dataclasses.replace(SOURCE, embed=SOURCE.embed * 3 // 2, mlp=SOURCE.mlp * 2)
    growth_map = make_map(SOURCE, wide, "random_width", norm="rms")
    assert growth_map.norm_scale == 1.0
    assert growth_map.target.norm_eps == SOURCE.norm_eps
    assert not growth_map.gates
    np.testing.assert_allclose(growth_map.widths["embed"].weights, np.sqrt(2 / 3))
    np.testing.assert_allclose(growth_map.widths["mlp"].weights, np.sqrt(1 / 2))


def test_rms_norm_at_twice_the_width_is_the_even_split():
    wide = dataclasses.replace(SOURCE, embed=SOURCE.embed * 2)
    rms, exact = (make_map(SOURCE, wide, "split", norm=norm) for norm in ("rms", "exact"))
    assert rms.widths == exact.widths
    assert rms.function_preserving()
