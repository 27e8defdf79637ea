"""A grown checkpoint beside its source: logits and losses on one batch."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from prts_jax import tree
from prts_jax.checkpoint.store import save_checkpoint
from prts_jax.config import ComputeConfig
from prts_jax.errors import UserError
from prts_jax.evaluate.agreement import (
    LENGTH,
    MARGIN,
    MOST,
    ROWS,
    TOLERANCE,
    Agreement,
    apply,
    choose_batch,
    compare,
    outputs_of,
    tolerance,
)
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare, logits
from prts_jax.model.initialise import standard_deviation
from prts_jax.model.inputs import Gates
from tests.checkpoint.tiny import MODEL, lineage_of, random_params, write_source
from tests.growth.on_disk.growing import stream
from tests.train.tiny import write_store

LINEAGE = lineage_of(random_params())


def with_data(**data):
    return dataclasses.replace(
        LINEAGE, config=LINEAGE.config | {"data": LINEAGE.config["data"] | {"length": 16} | data}
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "store"
    write_store(folder, vocab=MODEL.vocab)
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("agreement") / "source"
    return str(path), write_source(path)


def both(source, target, batch, growth_map):
    return compare(apply(source, batch), apply(str(target), batch), batch, growth_map)


@pytest.mark.parametrize("operator", ["zero", "random"])
def test_growth_with_zero_outputs_or_closed_gates_changes_no_logit(source, tmp_path, operator):
    growth_map = make_map(MODEL, None, operator, 2)
    stream(source[0], str(tmp_path / "grown"), growth_map)
    actual = both(source[0], tmp_path / "grown", choose_batch(with_data()), growth_map)
    assert actual.holds
    assert actual.largest_difference == 0
    assert actual.relative_difference == 0
    assert actual.loss_before == actual.loss_after


def test_difference_and_losses_equal_those_of_the_two_models(source, store, tmp_path):
    growth_map = make_map(MODEL, None, "stack", 2)
    stream(source[0], str(tmp_path / "grown"), growth_map)
    batch = choose_batch(with_data(), store)
    actual = both(source[0], tmp_path / "grown", batch, growth_map)

    compute = ComputeConfig(dtype="float32", attention="xla")
    doubled = tree.unflatten(
        {
            path: jnp.concatenate([leaf, leaf]) if path.startswith("layers/") else leaf
            for path, leaf in tree.flatten(source[1]).items()
        }
    )
    before = np.asarray(logits(source[1], batch.tokens, MODEL, compute), np.float64)
    after = np.asarray(logits(doubled, batch.tokens, growth_map.target, compute), np.float64)
    assert actual.largest_difference == pytest.approx(np.abs(after - before).max(), rel=1e-5)
    assert actual.largest_logit == pytest.approx(np.abs(before).max(), rel=1e-5)
    for scores, loss in ((before, actual.loss_before), (after, actual.loss_after)):
        picked = np.take_along_axis(log_softmax(scores, axis=-1), batch.targets[..., None], -1)
        assert loss == pytest.approx(-picked.mean(), rel=1e-5)
    assert actual.relative_difference > TOLERANCE
    assert actual.holds  # a stack promises nothing


def test_a_given_store_is_read_from_its_start(store):
    batch = choose_batch(with_data(validation="elsewhere"), store)
    assert batch.tokens.shape == batch.targets.shape == (ROWS, 16)
    np.testing.assert_array_equal(batch.tokens[:, 1:], batch.targets[:, :-1])
    assert batch.origin == f"the start of {store}"


def test_the_checkpoints_own_store_is_the_default(store):
    assert choose_batch(with_data(validation=store)).origin == f"the start of {store}"
    moved = with_data(validation="moved/away", train=store)
    assert choose_batch(moved).origin == f"the start of {store}"


def test_without_a_store_tokens_are_random():
    batch = choose_batch(with_data(length=2048))
    assert batch.tokens.shape == (ROWS, LENGTH)
    assert 0 <= batch.tokens.min() < batch.tokens.max() < MODEL.vocab
    assert "random tokens" in batch.origin


def test_a_store_of_a_larger_vocabulary_is_refused(tmp_path):
    write_store(tmp_path / "store", vocab=MODEL.vocab + 1)
    with pytest.raises(UserError, match="its tokenizer has 49 entries and the model 48"):
        choose_batch(with_data(), str(tmp_path / "store"))
    with pytest.raises(UserError, match="nowhere"):
        choose_batch(with_data(), str(tmp_path / "nowhere"))


def test_nan_and_infinity_are_null_in_json():
    actual = Agreement("", 1, float("nan"), 2.0, 1.0, float("inf"), TOLERANCE)
    assert actual.to_json()["largest_difference"] is None
    assert actual.to_json()["loss_after"] is None
    assert not actual.holds


def test_tolerance_follows_from_the_rounding_of_the_grown_model(source):
    batch = choose_batch(with_data())
    calm = apply(source[0], batch, rounding=True)
    largest = np.abs(calm.logits).max()
    assert 0 < calm.rounding < 1e-3 * largest  # rounding, and no more
    assert tolerance(calm, dataclasses.replace(calm, rounding=1e-4 * largest)) == pytest.approx(
        MARGIN * 1e-4
    )
    assert tolerance(calm, dataclasses.replace(calm, rounding=largest)) == MOST
    assert tolerance(calm, dataclasses.replace(calm, rounding=0.0)) == TOLERANCE


def with_two_heads_swapped(leaves):
    queries = leaves["layers/attention/q"]
    return {"layers/attention/q": queries[:, :, jnp.array([1, 0, *range(2, queries.shape[2])])]}


def with_a_layer_zeroed(leaves):
    return {"layers/mlp/down": leaves["layers/mlp/down"].at[1].set(0)}


def with_a_leaf_off_by_1_percent(leaves):
    return {"layers/mlp/up": leaves["layers/mlp/up"] * 1.01}


@pytest.mark.parametrize(
    ("layers", "size", "operator", "options", "detected"),
    [
        (30, 1.0, "split", {"weights": "uneven"}, 3),
        (3, 0.4, "split", {"pair_noise": 1.0}, 3),
        (3, 0.1, "split", {"pair_noise": 1.0}, 1),
        (3, 1.0, "zero_width", {}, 3),
    ],
    ids=["uneven halves in 30 layers", "noise on small weights", "on tiny weights", "zero width"],
)
def test_a_right_map_uses_a_third_of_the_tolerance_and_a_wrong_one_exceeds_it(
    layers, size, operator, options, detected
):
    model = dataclasses.replace(MODEL, layers=layers)
    params = {
        path: leaf
        if path.endswith("norm")
        else leaf * size * standard_deviation(declare(model)[path], layers, "paper")
        for path, leaf in tree.flatten(random_params(declare(model))).items()
    }
    widths = "embed=32,heads=8,kv_heads=4,mlp=48"
    growth_map = make_map(model, None, operator, widths=widths, **options)
    declared = declare(growth_map.target)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    grown = tree.flatten(
        grow_params(
            tree.unflatten(params),
            growth_map,
            declared,
            tree.unflatten(dict.fromkeys(declared, here)),
        )
    )
    batch = choose_batch(with_data())
    before = outputs_of(params, model, batch, Gates())
    after = outputs_of(dict(grown), growth_map.target, batch, Gates(), rounding=True)
    right = compare(before, after, batch, growth_map)
    assert right.relative_difference <= right.allowed / 3

    def share_used(leaves, target=growth_map.target):
        wrong = outputs_of(dict(leaves), target, batch, Gates())
        wrong = dataclasses.replace(wrong, rounding=after.rounding)
        return compare(before, wrong, batch, growth_map).relative_difference / right.allowed

    changes = (with_two_heads_swapped, with_a_layer_zeroed, with_a_leaf_off_by_1_percent)
    for change in changes[:detected]:  # noise on tiny weights amplifies rounding beyond the others
        assert share_used(grown | change(grown)) > 1.5, change.__name__
    if operator == "zero_width":
        target = dataclasses.replace(growth_map.target, norm_eps=model.norm_eps)
        assert share_used(grown, target) > 1.5


def test_a_broken_model_exceeds_the_tolerance(source, tmp_path):
    broken = {
        path: np.full_like(leaf, np.nan) if path == "final_norm" else np.asarray(leaf)
        for path, leaf in tree.flatten(source[1]).items()
    }
    params = tree.unflatten({path: jnp.asarray(leaf) for path, leaf in broken.items()})
    save_checkpoint(str(tmp_path / "broken"), params, lineage_of(params))
    kept = make_map(MODEL, None, "zero", 1)
    actual = both(source[0], tmp_path / "broken", choose_batch(with_data()), kept)
    assert not actual.holds
