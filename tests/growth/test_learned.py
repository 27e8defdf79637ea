"""Learned growth: its equations one by one, what it starts from, and what it refuses."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth import dense
from prts_jax.growth.function_preservation import reasons
from prts_jax.growth.learned import with_arrays
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.matrices import Matrices
from prts_jax.growth.operators import make_map
from prts_jax.growth.recipe import changes, recipes
from prts_jax.model.architecture import declare, logits
from prts_jax.tree import flatten
from tests.growth import one_device
from tests.growth.one_device import params_of

SOURCE = ModelConfig(vocab=48, layers=2, embed=12, heads=4, kv_heads=2, head_dim=4, mlp=16)
KINDS = {"MHA": 4, "GQA": 2, "MQA": 1}
COMPUTE = ComputeConfig(dtype="float32", attention="xla")


def source_of(kind: str = "GQA", **changes) -> ModelConfig:
    return dataclasses.replace(SOURCE, kv_heads=KINDS[kind], **changes)


def wider(source: ModelConfig) -> str:
    return f"embed=20,mlp=24,heads={2 * source.heads},kv_heads={2 * source.kv_heads}"


def grow(growth_map: GrowthMap):
    return one_device.grow(params_of(growth_map.source), growth_map)


def with_random_matrices(growth_map: GrowthMap) -> GrowthMap:
    """A map whose every entry is at work."""
    rng = np.random.default_rng(3)
    shapes = dense.matrix_shapes(growth_map, declare(growth_map.target))
    return with_arrays(
        growth_map,
        declare(growth_map.target),
        {
            name: rng.normal(size=(shape.rows, shape.columns)).astype(np.float32)
            for name, shape in shapes.items()
        },
    )


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("kind", KINDS)
def test_growth_is_the_papers_equations(kind, tied):
    source = source_of(kind, tied=tied)
    growth_map = with_random_matrices(
        make_map(source, None, "learned", widths=wider(source), factor=2)
    )
    old = {path: np.asarray(x, np.float64) for path, x in flatten(params_of(source)).items()}
    new = flatten(grow(growth_map))
    arrays = {name: np.asarray(x, np.float64) for name, x in growth_map.matrices.arrays.items()}
    B_e, B_m = arrays["width/embed"], arrays["width/mlp"]
    B_Q, B_K, B_V = (arrays[f"width/layers/attention/{name}"] for name in "qkv")
    target = growth_map.target
    queries = source.heads // source.kv_heads

    def mixed(path, layers):  # eqs 41-42
        depth = arrays[f"depth/{path}"]
        return [sum(depth[i, j] * layers[j] for j in range(2)) for i in range(4)]

    def projection(name, B):
        path = f"layers/attention/{name}"
        # Ours is [embed, heads, head_dim], the paper's (heads · head_dim, embed).
        grown = [B @ w.reshape(source.embed, -1).T @ B_e.T for w in old[path]]
        return [w.T.reshape(target.embed, -1, source.head_dim) for w in mixed(path, grown)]

    def output():
        # B_V repeated over each query group: head (k, g) of the target reads (k', g) of the source.
        repeated = np.zeros((target.heads * 4, source.heads * 4))
        for k, other in np.ndindex(target.kv_heads, source.kv_heads):
            for g in range(queries):
                rows = slice(4 * (k * queries + g), 4 * (k * queries + g) + 4)
                columns = slice(4 * (other * queries + g), 4 * (other * queries + g) + 4)
                repeated[rows, columns] = B_V[4 * k : 4 * k + 4, 4 * other : 4 * other + 4]
        path = "layers/attention/o"
        grown = [B_e @ w.reshape(-1, source.embed).T @ repeated.T for w in old[path]]
        return [w.T.reshape(target.heads, 4, target.embed) for w in mixed(path, grown)]

    def mlp(name, B_out, B_in):
        path = f"layers/mlp/{name}"
        return [w.T for w in mixed(path, [B_out @ w.T @ B_in.T for w in old[path]])]

    expected = {
        "token_embedding": old["token_embedding"] @ B_e.T,
        "final_norm": B_e @ old["final_norm"],
        "layers/attention/q": projection("q", B_Q),
        "layers/attention/k": projection("k", B_K),
        "layers/attention/v": projection("v", B_V),
        "layers/attention/o": output(),
        "layers/mlp/up": mlp("up", B_m, B_e),
        "layers/mlp/gate": mlp("gate", B_m, B_e),
        "layers/mlp/down": mlp("down", B_e, B_m),
    }
    for path in ("layers/attention_norm", "layers/mlp_norm"):
        expected[path] = mixed(path, [B_e @ scale for scale in old[path]])
    if not tied:
        expected["head"] = (old["head"].T @ B_e.T).T
    assert expected.keys() == new.keys()
    for path, values in expected.items():
        np.testing.assert_allclose(new[path], values, rtol=2e-4, atol=2e-5, err_msg=path)


def test_in_depth_it_starts_as_g_stack_tensor_for_tensor():
    started, stacked = (
        flatten(grow(make_map(SOURCE, None, name, factor=3))) for name in ("learned", "stack")
    )
    assert started.keys() == stacked.keys()
    for path, leaf in stacked.items():
        np.testing.assert_array_equal(started[path], leaf, err_msg=path)


@pytest.mark.parametrize(("kind", "tied"), [("MHA", False), ("GQA", True), ("MQA", False)])
def test_in_stream_and_heads_it_starts_as_an_exact_split(kind, tied):
    """With a vanishing norm epsilon, which the map leaves alone."""
    source = source_of(kind, tied=tied, norm_eps=1e-12)
    widths = f"embed=24,heads={2 * source.heads},kv_heads={2 * source.kv_heads}"
    growth_map = make_map(source, None, "learned", widths=widths)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 48, (2, 9)), jnp.int32)
    before = logits(params_of(source), tokens, source, COMPUTE)
    after = logits(grow(growth_map), tokens, growth_map.target, COMPUTE)
    assert float(jnp.abs(after - before).max() / jnp.abs(before).max()) <= 2e-6


def test_the_mlp_starts_near_the_function_and_its_copies_apart():
    source = source_of(norm_eps=1e-12)
    growth_map = make_map(source, None, "learned", widths="mlp=32")
    grown = grow(growth_map)
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 48, (2, 9)), jnp.int32)
    before = logits(params_of(source), tokens, source, COMPUTE)
    after = logits(grown, tokens, growth_map.target, COMPUTE)
    assert float(jnp.abs(after - before).max() / jnp.abs(before).max()) < 0.05
    up = np.asarray(grown["layers"]["mlp"]["up"])
    assert np.abs(up[..., :16] / up[..., 16:] - 2).max() < 1e-5  # shares of 2/3 and 1/3


def test_every_matrix_has_a_name_an_owner_and_a_shape():
    growth_map = make_map(SOURCE, None, "learned", widths=wider(SOURCE), factor=3)
    shapes = dense.matrix_shapes(growth_map, declare(growth_map.target))
    depth = {name for name in shapes if name.startswith("depth/")}
    assert {name.rpartition("/")[2] for name in depth} == {
        *("q", "k", "v", "o"), *("gate", "up", "down"), "attention_norm", "mlp_norm"
    }  # fmt: skip
    assert {shapes[name][:2] for name in depth} == {(6, 2)}
    assert {name: shapes[name] for name in shapes.keys() - depth} == {
        "width/embed": (20, 12, "embed"),
        "width/mlp": (24, 16, "mlp"),
        "width/layers/attention/q": (32, 16, "heads"),
        "width/layers/attention/k": (16, 8, "kv_heads"),
        "width/layers/attention/v": (16, 8, "kv_heads"),
    }


def test_the_map_survives_json_with_its_matrices_by_digest():
    growth_map = with_random_matrices(make_map(SOURCE, None, "learned", factor=2))
    values = json.loads(json.dumps(growth_map.to_json()))
    read = GrowthMap.from_json(values)
    assert read == growth_map
    assert read.digest() == growth_map.digest()
    assert "arrays" not in values["matrices"]
    with pytest.raises(UserError, match="matrices .* were not read with it"):
        dense.arrays_of(read, declare(read.target))


def test_the_digest_is_of_the_values():
    growth_map = with_random_matrices(make_map(SOURCE, None, "learned", factor=2))
    arrays = {name: array.copy() for name, array in growth_map.matrices.arrays.items()}
    assert (
        with_arrays(growth_map, declare(growth_map.target), arrays).digest() == growth_map.digest()
    )
    arrays["depth/layers/mlp/up"][0, 0] += 1e-3
    assert (
        with_arrays(growth_map, declare(growth_map.target), arrays).digest() != growth_map.digest()
    )


def test_matrices_survive_their_file():
    matrices = with_random_matrices(make_map(SOURCE, None, "learned", factor=2)).matrices
    learning = {"run": "runs/a", "tokens": 3, "flops": 1.5, "flops_6nd": 2.0}
    matrices = Matrices.of(matrices.arrays, learning)
    read = Matrices.from_bytes(matrices.to_bytes(), "here")
    assert (read, read.learning) == (matrices, learning)
    for name, array in matrices.arrays.items():
        np.testing.assert_array_equal(read.arrays[name], array)


def test_a_file_of_an_older_version_has_an_unknown_cost():
    data = Matrices.of({"depth/layers/mlp/up": np.eye(2, dtype=np.float32)}).to_bytes()
    assert Matrices.from_bytes(data, "a.npz").learning == {"run": "a.npz", "cost": "unknown"}


@pytest.mark.parametrize(
    "learning", [["x"], {"run": "a"}, {"run": "a", "tokens": -1, "flops": 1, "flops_6nd": 1}]
)
def test_a_damaged_cost_is_refused(learning):
    data = Matrices.of({"depth/layers/mlp/up": np.eye(2, dtype=np.float32)}, {"run": ""})
    data = dataclasses.replace(data, learning=learning).to_bytes()
    with pytest.raises(UserError, match="here: the cost of learning is damaged"):
        Matrices.from_bytes(data, "here")


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 nothing", b"\x93NUMPY"])
def test_another_file_is_refused(data):
    with pytest.raises(UserError, match="here: holds no matrices"):
        Matrices.from_bytes(data, "here")


def test_matrices_that_hold_no_numbers_are_refused_by_name():
    matrix = np.array([[1, np.nan]], np.float32)
    data = Matrices.of({"depth/layers/mlp/up": matrix}).to_bytes()
    with pytest.raises(UserError, match="here: depth/layers/mlp/up has values that are no numbers"):
        Matrices.from_bytes(data, "here")


def test_matrices_of_other_models_are_refused_by_name():
    growth_map = with_random_matrices(make_map(SOURCE, None, "learned", factor=2))
    deeper = dataclasses.replace(
        make_map(SOURCE, None, "learned", factor=3), matrices=growth_map.matrices
    )
    with pytest.raises(UserError, match=r"growth\.matrices: depth/layers/\S+: is \(4, 2\)"):
        grow(deeper)
    wide = make_map(SOURCE, None, "learned", factor=2, widths="mlp=24")
    wide = dataclasses.replace(wide, matrices=growth_map.matrices)
    with pytest.raises(UserError, match=r"width/mlp: is none in the file"):
        grow(wide)


def test_the_drawing_shows_the_strongest_layers():
    growth_map = make_map(SOURCE, None, "learned", factor=2)
    arrays = dict(dense.arrays_of(growth_map, declare(growth_map.target)))
    for name in arrays:
        arrays[name] = arrays[name][::-1]
    learned = with_arrays(growth_map, declare(growth_map.target), arrays)
    assert learned.layers == (1, 0, 1, 0)
    assert "strongest of mixed layers" in str(learned)
    assert "before learning" in str(growth_map)


def test_it_never_claims_to_keep_the_function():
    growth_map = make_map(SOURCE, None, "learned", widths=wider(SOURCE))
    assert not growth_map.function_preserving()
    assert "matrices mix layers and positions" in reasons(growth_map)
    done = changes(growth_map, recipes(growth_map, declare(growth_map.target)))
    assert "layers/mlp_norm" in done["layers mixed"]
    assert "layers copied" not in done


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"widths": "head_dim=8"}, "head_dim from 4 to 8"),
        ({"widths": "heads=8"}, "from 2 to 4 query heads a key head; learned growth ties"),
        ({"widths": "embed=6"}, "never shrinks"),
        ({}, r"growth\.factor: is 0 and no target"),
        ({"factor": 2, "order": "stack"}, "takes no order"),
        (
            {"factor": 2, "optimizer": "copy"},
            r"growth\.optimizer: 'learned' makes layers that are sums",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_map(SOURCE, None, "learned", **options)


def test_learning_flops_are_those_of_the_products():
    """Counted by hand for one layer of a single leaf at a time."""
    source = ModelConfig(vocab=5, layers=2, embed=3, heads=1, kv_heads=1, head_dim=2, mlp=4)
    growth_map = make_map(source, None, "learned", factor=2, widths="mlp=8")
    embed, mlp, heads = 3, 4, 2
    stacked = 2 * (4 * embed * heads + 3 * embed * mlp + 2 * embed)  # q, k, v, o; mlp; norms
    depth = 2 * (2 * stacked * 4)  # forward and the gradient of D
    widened = 3 * (4 * embed * mlp)  # gate, up and down of four layers
    width = 3 * (2 * widened * 8)  # and the gradient of what D made
    assert dense.learning_flops(growth_map, declare(growth_map.target)) == depth + width
