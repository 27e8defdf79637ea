"""A grown checkpoint beside its source: logits and losses on one batch."""

import dataclasses

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
    ROWS,
    TOLERANCE,
    Agreement,
    apply,
    choose_batch,
    compare,
    tolerance,
)
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import logits
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
    found = both(source[0], tmp_path / "grown", choose_batch(with_data()), growth_map)
    assert found.holds
    assert found.largest_difference == 0
    assert found.relative_difference == 0
    assert found.loss_before == found.loss_after


def test_difference_and_losses_equal_those_of_the_two_models(source, store, tmp_path):
    growth_map = make_map(MODEL, None, "stack", 2)
    stream(source[0], str(tmp_path / "grown"), growth_map)
    batch = choose_batch(with_data(), store)
    found = both(source[0], tmp_path / "grown", batch, growth_map)

    compute = ComputeConfig(dtype="float32", attention="xla")
    doubled = tree.unflatten(
        {
            path: jnp.concatenate([leaf, leaf]) if path.startswith("layers/") else leaf
            for path, leaf in tree.flatten(source[1]).items()
        }
    )
    before = np.asarray(logits(source[1], batch.tokens, MODEL, compute), np.float64)
    after = np.asarray(logits(doubled, batch.tokens, growth_map.target, compute), np.float64)
    assert found.largest_difference == pytest.approx(np.abs(after - before).max(), rel=1e-5)
    assert found.largest_logit == pytest.approx(np.abs(before).max(), rel=1e-5)
    for scores, loss in ((before, found.loss_before), (after, found.loss_after)):
        picked = np.take_along_axis(log_softmax(scores, axis=-1), batch.targets[..., None], -1)
        assert loss == pytest.approx(-picked.mean(), rel=1e-5)
    assert found.relative_difference > TOLERANCE
    assert found.holds  # a stack promises nothing


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
    found = Agreement("", 1, float("nan"), 2.0, 1.0, float("inf"), TOLERANCE)
    assert found.to_json()["largest_difference"] is None
    assert found.to_json()["loss_after"] is None
    assert not found.holds


def test_tolerance_grows_with_the_rounding_of_the_source(source):
    batch = choose_batch(with_data())
    calm = apply(source[0], batch, reorder=True)
    assert 0 < calm.reordered < 1e-3 * np.abs(calm.logits).max()  # rounding, and no more
    wild = dataclasses.replace(calm, reordered=1e-3)
    assert tolerance(wild) == pytest.approx(MARGIN * 1e-3 / np.abs(calm.logits).max())
    assert tolerance(apply(source[0], batch)) == TOLERANCE


def test_a_broken_model_exceeds_the_tolerance(source, tmp_path):
    broken = {
        path: np.full_like(leaf, np.nan) if path == "final_norm" else np.asarray(leaf)
        for path, leaf in tree.flatten(source[1]).items()
    }
    params = tree.unflatten({path: jnp.asarray(leaf) for path, leaf in broken.items()})
    save_checkpoint(str(tmp_path / "broken"), params, lineage_of(params))
    kept = make_map(MODEL, None, "zero", 1)
    found = both(source[0], tmp_path / "broken", choose_batch(with_data()), kept)
    assert not found.holds
