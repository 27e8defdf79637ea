"""Fresh parameters: the paper's statistics, and values that depend on nothing they should not.

That they do not depend on the mesh either is shown in test_sharded_model.py.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax import tree
from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.model.architecture import declare, logits
from prts_jax.model.initialise import draw_rows, init_params, leaf_key

# Leaves of at least 60,000 values: their standard deviation is known to 0.3%.
MODEL = ModelConfig(vocab=512, layers=4, embed=128, heads=8, kv_heads=4, head_dim=32, mlp=320)
HEADS = MODEL.heads * MODEL.head_dim


@functools.cache
def fresh(model: ModelConfig = MODEL, kind: str = "paper", seed: int = 0) -> dict[str, jax.Array]:
    return tree.flatten(init_params(declare(model), model.layers, kind, seed))


PAPER = {
    "token_embedding": math.sqrt(2 / (5 * MODEL.embed)),
    "head": math.sqrt(2 / (5 * MODEL.embed)),
    "layers/attention/q": math.sqrt(2 / (5 * MODEL.embed)),
    "layers/attention/k": math.sqrt(2 / (5 * MODEL.embed)),
    "layers/attention/v": math.sqrt(2 / (5 * MODEL.embed)),
    "layers/attention/o": math.sqrt(2 / (5 * HEADS)),
    "layers/mlp/gate": math.sqrt(2 / (5 * MODEL.embed)),
    "layers/mlp/up": math.sqrt(2 / (5 * MODEL.embed)),
    "layers/mlp/down": math.sqrt(1 / MODEL.mlp) / MODEL.layers,
}

TORCH_BOUND = {
    "head": 1 / math.sqrt(MODEL.embed),
    "layers/attention/q": 1 / math.sqrt(MODEL.embed),
    "layers/attention/o": 1 / math.sqrt(HEADS),
    "layers/mlp/up": 1 / math.sqrt(MODEL.embed),
    "layers/mlp/down": 1 / math.sqrt(MODEL.mlp),
}


@pytest.mark.parametrize("path", PAPER)
def test_the_papers_standard_deviations(path: str) -> None:
    leaf = fresh()[path]
    np.testing.assert_allclose(leaf.std(), PAPER[path], rtol=0.015)
    assert abs(leaf.mean()) < 4 * PAPER[path] / math.sqrt(leaf.size)


@pytest.mark.parametrize("path", ["token_embedding", "layers/mlp/down"])
def test_the_paper_draws_from_a_normal_distribution(path: str) -> None:
    z = fresh()[path] / PAPER[path]
    within = [float((jnp.abs(z) < deviations).mean()) for deviations in (1, 2)]
    np.testing.assert_allclose(within, [0.6827, 0.9545], atol=0.01)


@pytest.mark.parametrize("path", TORCH_BOUND)
def test_torch_default_is_uniform_within_one_over_the_root_of_fan_in(path: str) -> None:
    leaf = fresh(kind="torch_default")[path]
    assert 0.99 * TORCH_BOUND[path] < jnp.abs(leaf).max() <= TORCH_BOUND[path]
    np.testing.assert_allclose(leaf.std(), TORCH_BOUND[path] / math.sqrt(3), rtol=0.015)


def test_torch_default_embeds_with_a_standard_normal_distribution() -> None:
    np.testing.assert_allclose(fresh(kind="torch_default")["token_embedding"].std(), 1, rtol=0.015)


@pytest.mark.parametrize("kind", ["paper", "torch_default"])
def test_norms_start_at_one(kind: str) -> None:
    leaves = fresh(kind=kind)
    for path in ("layers/attention_norm", "layers/mlp_norm", "final_norm"):
        assert (leaves[path] == 1).all()


def test_every_leaf_has_its_declared_shape_and_dtype() -> None:
    leaves, declarations = fresh(), declare(MODEL)
    actual = {path: (leaf.shape, leaf.dtype.name) for path, leaf in leaves.items()}
    assert actual == {path: (d.shape, d.dtype) for path, d in declarations.items()}


@pytest.mark.parametrize("kind", ["paper", "torch_default"])
def test_a_layer_does_not_depend_on_how_many_there_are(kind: str) -> None:
    """But for the paper's down projections, which are scaled by the depth."""
    shallow, deep = (fresh(model, kind) for model in (dataclasses.replace(MODEL, layers=2), MODEL))
    for path, leaf in shallow.items():
        same = deep[path][:2] if path.startswith("layers/") else deep[path]
        if kind == "paper" and path == "layers/mlp/down":
            np.testing.assert_allclose(leaf * 2, same * MODEL.layers, rtol=1e-6)
        else:
            np.testing.assert_array_equal(leaf, same, err_msg=path)


def test_a_row_can_be_drawn_alone_from_seed_path_layer_and_row() -> None:
    path, layer, row = "layers/mlp/up", 2, 5
    leaf = fresh(seed=1)[path]
    key = jax.random.fold_in(jax.random.fold_in(leaf_key(1, path), layer), row)
    alone = PAPER[path] * jax.random.normal(key, leaf.shape[2:])
    np.testing.assert_allclose(leaf[layer, row], alone, rtol=1e-6)


@pytest.mark.parametrize("shape", [(40,), (40, 7, 3)])
def test_some_rows_are_those_of_the_whole_array(shape: tuple[int, ...]) -> None:
    keys, rows = jax.random.split(jax.random.key(3), 3), jnp.array([0, 5, 5, 39, 2])
    whole = jax.vmap(lambda key: draw_rows(jax.random.normal, key, shape))(keys)
    some = jax.jit(jax.vmap(lambda key: draw_rows(jax.random.normal, key, shape, rows)))(keys)
    # Compiled together with its surroundings, the normal's polynomial may round in another way.
    np.testing.assert_array_max_ulp(some, whole[:, np.asarray(rows)], maxulp=2)


def test_leaves_of_one_shape_layers_and_seeds_differ() -> None:
    leaves, other = fresh(), fresh(seed=1)
    assert not jnp.allclose(leaves["layers/attention/k"], leaves["layers/attention/v"])
    assert not jnp.allclose(leaves["layers/mlp/gate"], leaves["layers/mlp/up"])
    for path in PAPER:
        assert not jnp.allclose(leaves[path], other[path]), path
        if path.startswith("layers/"):
            flat = np.asarray(leaves[path]).reshape(MODEL.layers, -1)
            correlation = np.corrcoef(flat) - np.eye(MODEL.layers)
            assert np.abs(correlation).max() < 0.05, path


def test_the_same_seed_gives_the_same_values() -> None:
    first, second = fresh(seed=1), fresh.__wrapped__(seed=1)
    for path, leaf in first.items():
        np.testing.assert_array_equal(leaf, second[path], err_msg=path)


def test_the_first_loss_is_near_that_of_a_uniform_guess() -> None:
    """The paper's initialisation gives logits of about the embedding's size."""
    params = tree.unflatten(fresh())
    tokens = jax.random.randint(jax.random.key(0), (4, 32), 0, MODEL.vocab, jnp.int32)
    log_probs = jax.nn.log_softmax(logits(params, tokens, MODEL, ComputeConfig(dtype="float32")))
    loss = -jnp.take_along_axis(log_probs[:, :-1], tokens[:, 1:, None], axis=-1).mean()
    assert abs(loss - math.log(MODEL.vocab)) < 0.5
