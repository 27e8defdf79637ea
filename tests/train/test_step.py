"""One optimizer step: its loss, its gradient, micro-batches, and that it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.model.architecture import logits
from prts_jax.train.optim import make_optimizer
from prts_jax.train.schedule import learning_rate
from prts_jax.train.step import make_train_step
from tests.formats.foreign_models import transformers_of, under_their_names
from tests.train import tiny
from tests.train.one_step import NO_CLIP, make_batch, start, uneven_weights


def first_step(config, batch):
    state, step = start(config)
    return step(state, batch)


def mean_loss(params, batch, config) -> float:
    """The weighted mean of the negative log-likelihoods, in float64."""
    scores = np.asarray(logits(params, batch["tokens"], tiny.MODEL, config.compute), np.float64)
    scores -= scores.max(-1, keepdims=True)
    logs = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    picked = np.take_along_axis(logs, np.asarray(batch["targets"])[..., None], -1)[..., 0]
    weights = np.asarray(batch["loss_weights"], np.float64)
    return float(-(picked * weights).sum() / weights.sum())


@pytest.mark.parametrize("uneven", [False, True])
def test_loss_is_the_mean_over_the_tokens_that_count(uneven):
    config = tiny.run_config(**NO_CLIP)
    batch = make_batch(weights=uneven_weights() if uneven else None)
    state, step = start(config)
    expected = mean_loss(state.params, batch, config)
    _, metrics = step(state, batch)
    assert float(metrics.loss) == pytest.approx(expected, rel=1e-6)
    assert float(metrics.learning_rate) == pytest.approx(
        float(learning_rate(config.schedule, 0)), rel=1e-6
    )


def test_a_step_without_a_finite_gradient_changes_nothing_but_its_number():
    state, step = start(tiny.run_config())
    batch = make_batch()
    before = jax.tree.map(np.asarray, (state.params, state.optimizer))
    bad = batch | {"loss_weights": batch["loss_weights"].at[0, 0].set(np.nan)}
    state, metrics = step(state, bad)
    assert not np.isfinite(metrics.gradient_norm)
    jax.tree.map(np.testing.assert_array_equal, (state.params, state.optimizer), before)
    assert int(state.stage_step) == 1
    state, metrics = step(state, batch)
    assert np.isfinite(metrics.loss)
    assert int(state.stage_step) == 2


@pytest.mark.parametrize("count", [2, 4])
def test_micro_batches_change_only_rounding(count):
    """Also where the micro-batches hold different numbers of tokens that count."""
    batch = make_batch(weights=uneven_weights())
    # Without a clip, Adam's first moments after one step are (1 - b1) times the gradient itself.
    whole, metrics = first_step(tiny.run_config(**NO_CLIP), batch)
    split, split_metrics = first_step(tiny.run_config(train__accumulation=count, **NO_CLIP), batch)
    assert float(split_metrics.loss) == pytest.approx(float(metrics.loss), rel=1e-6)
    for ours, theirs in zip(
        jax.tree.leaves(split.optimizer[1].mu), jax.tree.leaves(whole.optimizer[1].mu), strict=True
    ):
        scale = float(jnp.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.parametrize("count", [1, 4])
def test_losses_by_source_are_those_of_each_sources_tokens(count):
    config = tiny.run_config(train__accumulation=count, **NO_CLIP)
    batch = make_batch(weights=uneven_weights())
    state, _ = start(config)
    step = make_train_step(config, make_optimizer(config), sources=4)
    weights, ids = np.asarray(batch["loss_weights"]), np.asarray(batch["source_ids"])
    alone = [batch | {"loss_weights": jnp.asarray(weights * (ids == i))} for i in range(3)]
    expected = [mean_loss(state.params, one, config) for one in alone]
    _, metrics = step(state, batch)
    # The fourth source has no tokens.
    tokens = [float(weights[ids == i].sum()) for i in range(4)]
    assert metrics.source_tokens.tolist() == tokens
    assert tokens[3] == metrics.source_losses[3] == 0
    actual = metrics.source_losses[:3] / metrics.source_tokens[:3]
    assert actual.tolist() == pytest.approx(expected, rel=1e-6)


def test_one_batch_is_learned_by_heart():
    config = tiny.run_config(schedule__peak=1e-2, schedule__warmup_steps=5)
    batch = make_batch(rows=4)
    state, step = start(config)
    losses = []
    for _ in range(150):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    assert losses[0] == pytest.approx(np.log(tiny.MODEL.vocab), rel=0.2)
    assert losses[-1] < 0.1
    assert int(state.stage_step) == 150


def test_gradient_norm_is_reported_before_the_clip():
    batch = make_batch()
    _, clipped = first_step(tiny.run_config(optimizer__clip=1e-3), batch)
    _, free = first_step(tiny.run_config(**NO_CLIP), batch)
    assert float(clipped.gradient_norm) == pytest.approx(float(free.gradient_norm), rel=1e-6)
    assert float(free.gradient_norm) > 1e-2


def test_step_norm_is_that_of_the_change_of_the_parameters():
    state, step = start(tiny.run_config())
    before = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.params)]
    state, metrics = step(state, make_batch())
    after = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(state.params)]
    squares = sum(((b - a) ** 2).sum() for a, b in zip(before, after, strict=True))
    assert float(metrics.step_norm) == pytest.approx(np.sqrt(squares), rel=1e-5)


def test_loss_and_gradients_are_torchs_on_hugging_faces_llama():
    """From the same weights and the same batch; torch computes in float64."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    batch = make_batch()
    state, step = start(tiny.run_config(**NO_CLIP))
    theirs = transformers_of(state.params, tiny.MODEL, "float64")
    out = theirs(torch.tensor(np.asarray(batch["tokens"]), dtype=torch.long)).logits
    loss = torch.nn.functional.cross_entropy(
        out.flatten(0, 1), torch.tensor(np.asarray(batch["targets"])).long().flatten()
    )
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in theirs.parameters()])

    state, metrics = step(state, batch)
    assert float(metrics.loss) == pytest.approx(loss.item(), rel=1e-6)
    assert float(metrics.gradient_norm) == pytest.approx(norm.item(), rel=1e-5)
    gradients = {name: parameter.grad.numpy() for name, parameter in theirs.named_parameters()}
    moments = under_their_names(state.optimizer[1].mu)
    assert moments.keys() == gradients.keys()
    for name, gradient in gradients.items():
        # After one step without a clip, the first moment is (1 - b1) times the gradient.
        scale = np.abs(gradient).max()
        np.testing.assert_allclose(
            moments[name] / 0.1, gradient, rtol=1e-4, atol=1e-5 * scale, err_msg=name
        )


def test_the_state_is_given_away():
    """Parameters and moments exist once in memory: a step's input is not usable after it."""
    state, step = start(tiny.run_config(**NO_CLIP))
    step(state, make_batch())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))


def test_bfloat16_computes_near_float32_and_keeps_its_state_in_float32():
    batch = make_batch()
    _, exact = first_step(tiny.run_config(**NO_CLIP), batch)
    state, rough = first_step(tiny.run_config(compute__dtype="bfloat16", **NO_CLIP), batch)
    assert float(rough.loss) == pytest.approx(float(exact.loss), rel=1e-2)
    assert float(rough.loss) != float(exact.loss)
    leaves = jax.tree.leaves((state.params, state.optimizer[1].mu, state.optimizer[1].nu))
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}
