"""Growth of optimizer states: what moments become, against gradients of the grown model itself.

optax makes the states here; `prts_jax.growth.optimizer` sees trees of arrays only.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.operators import make_map
from prts_jax.growth.optimizer import FRESH, KEPT, SCHEDULE, Moment, grow_optimizer, roles
from prts_jax.model.architecture import declare, logits
from prts_jax.model.loss import token_losses
from prts_jax.tree import flatten, named_leaves, unflatten
from tests.growth.one_device import grow, params_of

COMPUTE = ComputeConfig(dtype="float32", attention="xla")
SOURCE = ModelConfig(vocab=32, layers=2, embed=8, heads=2, kv_heads=1, head_dim=4, mlp=12)
TOKENS = np.random.default_rng(1).integers(0, SOURCE.vocab, (2, 9)).astype(np.int32)


_made: dict[str, Any] = {}


def grown_params(growth_map: GrowthMap):
    """The grown parameters, made once for each map."""
    if growth_map.digest() not in _made:
        _made[growth_map.digest()] = grow(params_of(growth_map.source), growth_map)
    return _made[growth_map.digest()]


@functools.partial(jax.jit, static_argnums=1)
def gradient(params, model: ModelConfig):
    def loss(params):
        scores = logits(params, TOKENS[:, :-1], model, COMPUTE)
        return jnp.mean(token_losses(scores, TOKENS[:, 1:]))

    return jax.grad(loss)(params)


@functools.partial(jax.jit, static_argnums=1)
def scores(params, model: ModelConfig):
    return logits(params, TOKENS, model, COMPUTE)


@functools.cache
def gradient_of(source: ModelConfig):
    return gradient(params_of(source), source)


@jax.jit
def moments_of(gradients) -> optax.ScaleByAdamState:
    """Adam's state after one gradient: multiples of it and of its square."""
    adam = optax.scale_by_adam(b1=0.5, b2=0.5)
    return adam.update(gradients, adam.init(gradients))[1]


def filled_state(transform):
    """A state of the source that has seen something: every leaf another number."""
    state = transform.init(params_of(SOURCE))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(2, 9, leaf.shape), leaf.dtype), state)


def copied(growth_map: GrowthMap, state, transform=None, **options):
    init, target = (transform or optax.scale_by_adam()).init, declare(growth_map.target)
    params = unflatten({path: jnp.zeros(d.shape) for path, d in target.items()})
    with jax.disable_jit():  # nothing here is large enough to be worth a compilation
        return grow_optimizer(state, growth_map, target, init, params, None, **options)


def old_entries(growth_map: GrowthMap) -> dict[str, np.ndarray]:
    """Which entries of each target leaf come from the source."""
    actual = {}
    for path, declaration in declare(growth_map.target).items():
        actual[path] = np.ones(declaration.shape, bool)
        for at, axis in enumerate(declaration.axes):
            if axis in growth_map.widths:
                widening = growth_map.widths[axis]
                old = np.array(widening.index) != -1
                if axis not in declaration.contracts:
                    old &= np.array(widening.weights) != 0  # queries that nothing reads yet
                actual[path] &= old.reshape(
                    [-1 if at == i else 1 for i in range(actual[path].ndim)]
                )
    return actual


def assert_copied_moments_are_the_grown_models(growth_map: GrowthMap) -> None:
    actual = copied(growth_map, moments_of(gradient_of(growth_map.source)))
    grown = moments_of(gradient(grown_params(growth_map), growth_map.target))
    old = old_entries(growth_map)
    for name in ("mu", "nu"):
        expected = flatten(getattr(grown, name))
        for path, moment in flatten(getattr(actual, name)).items():
            there = np.asarray(expected[path])
            scale = np.abs(there).max()
            np.testing.assert_allclose(
                np.asarray(moment)[old[path]],
                there[old[path]],
                rtol=2e-4,
                atol=1e-5 * scale,
                err_msg=f"{name} of {path}",
            )
            np.testing.assert_array_equal(np.asarray(moment)[~old[path]], 0)


EVEN = ("split", "embed=16,mlp=24,heads=4,kv_heads=2", {})
THRICE = ("split", "embed=24,mlp=18,heads=4", {})
UNEVEN = ("split", "mlp=30,heads=4,kv_heads=2", {"weights": "uneven"})
ZERO = ("zero_width", "embed=12,mlp=18,heads=4,kv_heads=2,head_dim=8", {"seed": 3})


@pytest.mark.parametrize(
    ("operator", "widths", "options", "tied"),
    [
        pytest.param(*EVEN, False, id="even"),
        pytest.param(*EVEN, True, id="even, tied", marks=pytest.mark.slow),
        pytest.param(*THRICE, False, id="thrice, some twice", marks=pytest.mark.slow),
        pytest.param(*UNEVEN, False, id="uneven off the stream", marks=pytest.mark.slow),
        pytest.param(*UNEVEN, True, id="uneven off the stream, tied", marks=pytest.mark.slow),
        pytest.param(*ZERO, False, id="zero", marks=pytest.mark.slow),
        pytest.param(*ZERO, True, id="zero, tied", marks=pytest.mark.slow),
    ],
)
def test_copied_moments_are_what_the_grown_models_gradient_gives(operator, widths, options, tied):
    source = dataclasses.replace(SOURCE, tied=tied)
    growth_map = make_map(source, None, operator, widths=widths, **options)
    assert growth_map.function_preserving()
    assert_copied_moments_are_the_grown_models(growth_map)


@pytest.mark.slow
def test_uneven_weights_on_the_stream_are_an_approximation():
    """The norms' derivative mixes all components evenly, whatever their weights."""
    growth_map = make_map(SOURCE, None, "split", widths="embed=16", weights="uneven")
    with pytest.raises(AssertionError, match="mu of"):
        assert_copied_moments_are_the_grown_models(growth_map)


def test_layers_keep_the_moments_of_those_they_copy():
    growth_map = make_map(SOURCE, None, "layers", 0, "0,1,0,1,1")
    state = filled_state(optax.scale_by_adam())
    actual = copied(growth_map, state)
    for before, after in ((state.mu, actual.mu), (state.nu, actual.nu)):
        for path, leaf in flatten(before).items():
            expected = leaf[np.array([0, 1, 0, 1, 1])] if path.startswith("layers/") else leaf
            np.testing.assert_array_equal(flatten(after)[path], expected, err_msg=path)
    assert actual.count == state.count


def test_moments_of_new_layers_and_of_layers_with_zero_outputs_are_zero():
    zero = make_map(SOURCE, None, "zero", 2)
    assert zero.zeroed == (1, 3)
    random = make_map(SOURCE, None, "random", 2, order="stack", seed=1)
    for growth_map, blank in ((zero, [1, 3]), (random, [2, 3])):
        actual = copied(growth_map, filled_state(optax.scale_by_adam()))
        for path, leaf in flatten({"mu": actual.mu, "nu": actual.nu}).items():
            if "layers/" in path:
                largest = np.abs(leaf).reshape(4, -1).max(axis=1)
                assert [at for at in range(4) if largest[at] == 0] == blank, path


@pytest.mark.slow
def test_what_a_silent_layer_holds_gets_no_gradient_but_through_its_outputs():
    """Why all moments of such layers are zero: the gradients were."""
    growth_map = make_map(SOURCE, None, "zero", 2)
    actual = flatten(gradient(grown_params(growth_map), growth_map.target)["layers"])
    for path, leaf in actual.items():
        quiet = np.abs(leaf[np.array(growth_map.zeroed)]).max()
        assert (quiet > 0) == (path in ("attention/o", "mlp/down")), path


def test_noise_does_not_touch_moments():
    calm = make_map(SOURCE, None, "split", widths="mlp=24")
    noisy = make_map(SOURCE, None, "split", widths="mlp=24", noise=0.3, pair_noise=0.5, seed=3)
    state = filled_state(optax.scale_by_adam())
    for ours, theirs in zip(
        jax.tree.leaves(copied(calm, state)), jax.tree.leaves(copied(noisy, state)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_all_moments_of_layers_grown_from_none_are_zero():
    empty = dataclasses.replace(SOURCE, layers=0)
    growth_map = make_map(empty, dataclasses.replace(SOURCE, layers=2), "random")
    ones = {path: jnp.ones(d.shape) for path, d in declare(empty).items()}
    state = moments_of(unflatten(ones))
    actual = flatten(copied(growth_map, state).mu)
    assert {path for path, leaf in actual.items() if not np.any(leaf)} == {
        path for path in actual if path.startswith("layers/")
    }


# One step of AdamW after growth


def stepped(params, state, model, change=lambda updates: updates):
    """Parameters after a step of AdamW at rate 0.05, and the parts of the step."""
    decay, rate = 0.1, 0.05
    adam = jax.jit(optax.scale_by_adam(eps=1e-20).update)
    updates, _ = adam(gradient(params, model), state)
    updates = change(updates)
    after = jax.tree.map(lambda p, u: p - rate * (u + decay * p), params, updates)
    return after, updates


@pytest.fixture(scope="module")
def even_split() -> GrowthMap:
    return make_map(SOURCE, None, "split", widths="embed=16,mlp=24,heads=4,kv_heads=2")


def test_a_step_of_adam_moves_every_copy_as_far_as_its_source(even_split):
    """Adam does not see the size of gradients: neither does it see the weights of the split."""
    state = moments_of(gradient_of(SOURCE))
    _, before = stepped(params_of(SOURCE), state, SOURCE)
    target = even_split.target
    _, after = stepped(grown_params(even_split), copied(even_split, state), target)
    declarations = declare(target)
    for path, update in flatten(before).items():
        axes = declarations[path].axes
        for at, axis in enumerate(axes):
            if axis in even_split.widths:
                update = jnp.take(update, np.array(even_split.widths[axis].index), axis=at)
        np.testing.assert_allclose(flatten(after)[path], update, rtol=1e-3, atol=1e-3, err_msg=path)


def test_the_function_stays_the_sources_where_sums_over_copies_take_their_share(even_split):
    """Two copies that both move as far as the source would move a sum twice as far; halved in the
    leaves that sum, the step is the source's own, grown."""
    state, target = moments_of(gradient_of(SOURCE)), even_split.target
    declarations = declare(target)

    def shared(updates):
        def share(path, update):
            summed = [axis for axis in declarations[path].contracts if axis in even_split.widths]
            return update / 2 ** len(summed)

        return unflatten({path: share(path, leaf) for path, leaf in flatten(updates).items()})

    source, _ = stepped(params_of(SOURCE), state, SOURCE)
    grown, _ = stepped(grown_params(even_split), copied(even_split, state), target, shared)
    alone, _ = stepped(grown_params(even_split), copied(even_split, state), target)
    reset = optax.scale_by_adam().init(grown_params(even_split))
    forgotten, _ = stepped(grown_params(even_split), reset, target, shared)

    expected = scores(source, SOURCE)
    scale = float(jnp.abs(expected).max())

    def difference(params) -> float:
        return float(jnp.abs(scores(params, target) - expected).max()) / scale

    assert difference(grown) < 1e-4
    assert difference(alone) > 1e-2
    assert difference(forgotten) > 1e-2


# Any tree of optax


def mask_of(params):
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


TRANSFORMS = {
    "adamw": lambda: optax.adamw(1e-3),
    "a schedule": lambda: optax.adamw(optax.linear_schedule(1e-3, 0.0, 100)),
    "a chain": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.scale_by_adam(), optax.add_decayed_weights(0.1)
    ),
    "a mask": lambda: optax.masked(optax.adamw(1e-3), mask_of),
    "MultiSteps": lambda: optax.MultiSteps(optax.adamw(1e-3), every_k_schedule=3),
    "injected": lambda: optax.inject_hyperparams(optax.adamw)(learning_rate=1e-3),
    "an injected schedule": lambda: optax.inject_hyperparams(optax.adamw)(
        learning_rate=optax.linear_schedule(1e-3, 0.0, 100)
    ),
    "bfloat16": lambda: optax.adamw(1e-3, mu_dtype=jnp.bfloat16),
    "amsgrad": lambda: optax.amsgrad(1e-3),
    "momentum": lambda: optax.sgd(1e-3, momentum=0.9),
    "lion": lambda: optax.lion(1e-3),
    "rmsprop": lambda: optax.rmsprop(1e-3),
}
DEEPER = make_map(SOURCE, None, "stack", 2)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_any_tree_of_moments_and_counts_grows(name):
    transform = TRANSFORMS[name]()
    state = filled_state(transform)
    grown = copied(DEEPER, state, transform)
    params = unflatten({path: jnp.zeros(d.shape) for path, d in declare(DEEPER.target).items()})
    wanted = jax.eval_shape(transform.init, params)
    assert jax.tree.structure(grown) == jax.tree.structure(wanted)
    before, after = named_leaves(state), named_leaves(grown)
    for path, leaf in named_leaves(wanted).items():
        assert (after[path].shape, after[path].dtype) == (leaf.shape, leaf.dtype), path
        if "layers/" in path:
            expected = jnp.concatenate([before[path]] * 2)
            np.testing.assert_array_equal(after[path], expected, err_msg=path)
    jax.eval_shape(transform.update, params, grown, params)


def test_counts_of_moments_stay_and_a_schedules_count_is_a_decision_of_its_own():
    transform = TRANSFORMS["a schedule"]()
    state = filled_state(transform)
    actual = roles(named_leaves(state), declare(SOURCE))
    assert {path: role for path, role in actual.items() if not isinstance(role, Moment)} == {
        "0/count": KEPT,
        "2/count": SCHEDULE,
    }
    assert actual["0/nu/layers/mlp/up"] == Moment("layers/mlp/up", 2)
    for policy, count in (("copy", 0), ("keep", state[2].count)):
        grown = copied(DEEPER, state, transform, policy=policy)
        assert (grown[0].count, grown[2].count) == (state[0].count, count)


def test_steps_gathered_half_way_are_kept_with_what_they_gathered():
    transform = TRANSFORMS["MultiSteps"]()
    actual = roles(named_leaves(transform.init(params_of(SOURCE))), declare(SOURCE))
    assert (actual["mini_step"], actual["gradient_step"]) == (KEPT, KEPT)
    assert actual["acc_grads/head"] == Moment("head", 1)


def test_injected_values_are_the_new_configs():
    def transform(rate):
        return optax.inject_hyperparams(optax.adamw)(learning_rate=rate)

    state = filled_state(transform(1e-3))
    assert roles(named_leaves(state), declare(SOURCE))["hyperparams/learning_rate"] == FRESH
    grown = copied(DEEPER, state, transform(5e-4))
    assert float(grown.hyperparams["learning_rate"]) == pytest.approx(5e-4)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            optax.adafactor(1e-3, min_dim_size_to_factor=4),
            r"v_(row|col)/.*Adafactor's is factored\); it cannot be copied .* use 'reset'",
        ),
        (optax.novograd(1e-3), r"nu/.*has shape \(\), not its parameter's"),
        (optax.chain(optax.add_noise(0.1, 0.5, 0), optax.adam(1e-3)), r"neither a moment of"),
        (optax.adadelta(1e-3), r"e_g/.*is no known power of the gradient"),
    ],
    ids=["adafactor", "novograd", "noise", "adadelta"],
)
def test_what_is_not_understood_is_refused_in_one_line(transform, message):
    state = transform.init(params_of(SOURCE))
    with pytest.raises(UserError, match=message) as refused:
        copied(DEEPER, state, transform)
    assert "\n" not in str(refused.value)


def test_second_moments_do_not_go_through_sums_of_layers():
    learned = make_map(SOURCE, None, "learned", 2)
    with pytest.raises(UserError, match=r"growth\.optimizer: 'learned' makes layers that are sums"):
        copied(learned, filled_state(optax.scale_by_adam()))


def test_another_optimizers_state_is_refused():
    adam = optax.adam(1e-3).init(params_of(SOURCE))
    with pytest.raises(UserError, match=r"growth\.optimizer: 0/.*is in the"):
        copied(DEEPER, adam, optax.sgd(1e-3, momentum=0.9))
    other = optax.adam(1e-3).init(params_of(dataclasses.replace(SOURCE, layers=3)))
    with pytest.raises(UserError, match=r"has shape \(3, .*\) in the source, not \(2, "):
        copied(DEEPER, other, optax.adam(1e-3))
