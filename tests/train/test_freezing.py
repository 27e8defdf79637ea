"""Training what growth added and nothing else: what stays, what moves, and what it costs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax import tree
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.operators import make_map
from prts_jax.mesh import make_mesh, param_shardings
from prts_jax.model.architecture import declare, logits
from prts_jax.model.counts import training_flops_per_token
from prts_jax.model.initialise import init_params
from prts_jax.train.freezing import layers_kept
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import TrainState, fresh_state
from prts_jax.train.step import make_train_step
from tests.train import tiny
from tests.train.one_step import make_batch


def grown_map(operator: str, source: ModelConfig = tiny.MODEL, depth: int = 4, **options):
    target = dataclasses.replace(source, layers=depth)
    return make_map(source, target, operator=operator, **options)


def grown_params(growth_map, config):
    mesh = make_mesh(config.mesh)
    declarations = declare(growth_map.target)
    source = declare(growth_map.source)
    params = init_params(
        source, growth_map.source.layers, "paper", 0, param_shardings(mesh, source)
    )
    return grow_params(params, growth_map, declarations, param_shardings(mesh, declarations)), mesh


def host(values) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in tree.flatten(values).items()}


@pytest.mark.parametrize(
    ("operator", "options", "kept"),
    [
        ("stack", {}, (0, 1)),
        ("last", {}, (0, 1)),
        ("interpolate", {}, (0, 2)),
        ("zero", {}, (0, 2)),
        ("random", {}, (0, 2)),
        ("random", {"order": "stack"}, (0, 1)),
        ("layers", {"layers": "0:2,1:2,0:1"}, (0, 1)),
    ],
)
def test_of_several_copies_the_first_is_the_layer_itself(operator, options, kept):
    assert layers_kept(grown_map(operator, **options)) == kept


def test_nothing_new_is_refused():
    with pytest.raises(UserError, match=r"config\.train\.trainable: is 'new'"):
        layers_kept(None)
    with pytest.raises(UserError, match=r"config\.train\.trainable: is 'new'"):
        layers_kept(grown_map("stack", depth=2))
    with pytest.raises(UserError, match="copies or fresh"):
        layers_kept(grown_map("learned"))
    wider = dataclasses.replace(tiny.MODEL, mlp=2 * tiny.MODEL.mlp)
    with pytest.raises(UserError, match=r"growth in depth alone"):
        layers_kept(make_map(tiny.MODEL, wider, operator="split"))


@pytest.mark.parametrize("tied", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_frozen_parameters_and_their_moments_stay_to_the_bit(tied):
    """Though weight decay and old moments would move them; all that is new moves."""
    config = tiny.run_config(optimizer__weight_decay=0.5, train__accumulation=2)
    growth_map = grown_map("stack", dataclasses.replace(tiny.MODEL, tied=tied))
    params, mesh = grown_params(growth_map, config)
    optimizer = make_optimizer(config)
    state = fresh_state(params, optimizer, mesh)
    # As if the moments had grown too.
    moments = jax.tree.map(lambda leaf: leaf + 1, state.optimizer)
    state = TrainState(state.params, moments, state.stage_step)
    before, moments = host(state.params), host(state.optimizer[1].mu)
    step = make_train_step(
        dataclasses.replace(config, model=growth_map.target), optimizer, frozen=(0, 1)
    )
    for _ in range(3):
        state, _ = step(state, make_batch())
    after, moved = host(state.params), host(state.optimizer[1].mu)
    for path in before:
        if path.startswith("layers/"):
            np.testing.assert_array_equal(after[path][:2], before[path][:2], err_msg=path)
            np.testing.assert_array_equal(moved[path][:2], moments[path][:2], err_msg=path)
            for layer in (2, 3):
                assert (after[path][layer] != before[path][layer]).any(), (path, layer)
        elif path == "token_embedding" and not tied:
            np.testing.assert_array_equal(after[path], before[path])
        else:
            assert (after[path] != before[path]).any(), path


@pytest.mark.parametrize(
    "frozen", [(0, 2), *[pytest.param(f, marks=pytest.mark.slow) for f in [(0, 1), (1, 3), ()]]]
)
def test_what_is_trained_has_the_gradient_of_the_whole_model(frozen):
    config = tiny.run_config()
    growth_map = grown_map("stack")
    params, _ = grown_params(growth_map, config)
    tokens = make_batch()["tokens"]

    def gradient(frozen):
        def loss(params):
            out = logits(params, tokens, growth_map.target, config.compute, frozen=frozen)
            return jnp.mean(jnp.square(out))

        return host(jax.grad(loss)(params))

    whole, actual = gradient(None), gradient(frozen)
    for path, leaf in whole.items():
        trained = np.ones(len(leaf), bool)
        if path.startswith("layers/"):
            trained[list(frozen)] = False
        trained &= path != "token_embedding"
        scale = np.abs(leaf).max()
        np.testing.assert_allclose(
            actual[path][trained], leaf[trained], rtol=1e-4, atol=1e-5 * scale, err_msg=path
        )
        assert not actual[path][~trained].any(), path


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [(0, 1, 2), (1, 2), (0, 2)])
def test_flops_are_those_of_the_compiled_program(frozen):
    """XLA counts what it compiled: matrix products, and little else in a model of this shape."""
    model = dataclasses.replace(
        tiny.MODEL, layers=4, embed=64, heads=4, kv_heads=4, head_dim=16, mlp=256
    )
    compute = tiny.run_config(compute__scan=False).compute
    declarations = declare(model)
    shapes = tree.unflatten(
        {path: jax.ShapeDtypeStruct(d.shape, d.dtype) for path, d in declarations.items()}
    )
    tokens = jax.ShapeDtypeStruct((4, 8), jnp.int32)

    def compiled_flops(frozen) -> float:
        def loss(params, tokens):
            return jnp.sum(logits(params, tokens, model, compute, frozen=frozen))

        compiled = jax.jit(jax.grad(loss)).lower(shapes, tokens).compile()
        return compiled.cost_analysis()["flops"]

    actual = compiled_flops(frozen) / compiled_flops(None)
    counted = training_flops_per_token(model, declarations, 8, frozen)
    assert actual == pytest.approx(
        counted / training_flops_per_token(model, declarations, 8), rel=0.05
    )
    assert counted < training_flops_per_token(model, declarations, 8)
