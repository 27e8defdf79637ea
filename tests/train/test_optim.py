"""AdamW and the learning rate against formulas written out, and against torch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.config import OptimizerConfig, ScheduleConfig
from prts_jax.train.optim import adamw, apply_updates
from prts_jax.train.schedule import learning_rate

SHAPES = {"matrix": (5, 3), "norm": (7,)}
RATES = [1e-2, 3e-2, 2e-2, 1e-2, 5e-3, 1e-3]


def random_tree(random: np.random.Generator, scale: float = 1.0) -> dict[str, np.ndarray]:
    return {name: scale * random.standard_normal(shape) for name, shape in SHAPES.items()}


def gradients(scale: float) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(1)
    return [random_tree(random, scale) for _ in RATES]


def train(config: OptimizerConfig, start, grads) -> dict[str, np.ndarray]:
    optimizer = adamw(config)
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), start)
    state = optimizer.init(params)
    for rate, grad in zip(RATES, grads, strict=True):
        grad = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grad)
        updates, state = optimizer.update(grad, state, params)
        params = apply_updates(params, updates, jnp.float32(rate))
    return params


def adamw_by_hand(config: OptimizerConfig, start, grads) -> dict[str, np.ndarray]:
    """arXiv 1711.05101, algorithm 2, decay on everything, after a clip of the global norm."""
    params = {name: p.copy() for name, p in start.items()}
    mu = {name: np.zeros_like(p) for name, p in params.items()}
    nu = {name: np.zeros_like(p) for name, p in params.items()}
    for step, (rate, grad) in enumerate(zip(RATES, grads, strict=True), start=1):
        norm = math.sqrt(sum(float((g**2).sum()) for g in grad.values()))
        shrink = min(1.0, config.clip / norm) if config.clip else 1.0
        for name, p in params.items():
            g = grad[name] * shrink
            mu[name] = config.b1 * mu[name] + (1 - config.b1) * g
            nu[name] = config.b2 * nu[name] + (1 - config.b2) * g**2
            mu_hat = mu[name] / (1 - config.b1**step)
            nu_hat = nu[name] / (1 - config.b2**step)
            params[name] = p - rate * (
                mu_hat / (np.sqrt(nu_hat) + config.eps) + config.weight_decay * p
            )
    return params


@pytest.mark.parametrize(
    ("clip", "scale"),
    [(1.0, 1e-2), (1.0, 10.0), (0.0, 10.0)],
    ids=["below the clip", "clipped", "clip off"],
)
def test_steps_are_adamw_with_decay_on_every_parameter(clip, scale):
    config = OptimizerConfig(clip=clip, weight_decay=0.1)
    start, grads = random_tree(np.random.default_rng(0)), gradients(scale)
    ours, by_hand = train(config, start, grads), adamw_by_hand(config, start, grads)
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], by_hand[name], rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-2, 10.0], ids=["below the clip", "clipped"])
def test_steps_are_torchs(scale):
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(clip=1.0, weight_decay=0.1, b1=0.9, b2=0.95)
    start, grads = random_tree(np.random.default_rng(0)), gradients(scale)
    theirs = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in start.items()}
    optimizer = torch.optim.AdamW(
        theirs.values(), betas=(config.b1, config.b2), eps=config.eps, weight_decay=0.1
    )
    for rate, grad in zip(RATES, grads, strict=True):
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grad[name])
        torch.nn.utils.clip_grad_norm_(theirs.values(), config.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    ours = train(config, start, grads)
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], theirs[name].detach(), rtol=2e-5, atol=1e-6)


def test_without_a_gradient_a_parameter_still_decays():
    config = OptimizerConfig(weight_decay=0.5)
    start = {name: np.ones(shape) for name, shape in SHAPES.items()}
    zeros = [{name: np.zeros(shape) for name, shape in SHAPES.items()} for _ in RATES]
    ours = train(config, start, zeros)
    expected = math.prod(1 - rate * 0.5 for rate in RATES)
    for name in SHAPES:
        np.testing.assert_allclose(ours[name], expected, rtol=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_warm_up_is_linear_and_ends_at_the_peak(kind):
    config = ScheduleConfig(
        kind=kind, peak=0.4, warmup_steps=4, decay_start=10, decay_end=1_000_000
    )
    rates = [float(learning_rate(config, step)) for step in range(4)]
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.3, 0.4], rtol=1e-6)


def test_cosine_falls_from_the_peak_to_its_final_share():
    config = ScheduleConfig(kind="cosine", peak=2.0, final=0.1, warmup_steps=10, decay_end=110)
    for step in (10, 11, 35, 60, 109):
        share = 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))
        expected = 2.0 * (0.1 + 0.9 * share)
        assert float(learning_rate(config, step)) == pytest.approx(expected, rel=1e-6)
    assert float(learning_rate(config, 10)) == pytest.approx(2.0)
    for step in (110, 111, 10_000):
        assert float(learning_rate(config, step)) == pytest.approx(0.2, rel=1e-6)


def test_wsd_stays_at_the_peak_and_then_falls_linearly():
    config = ScheduleConfig(
        kind="wsd", peak=2.0, final=0.25, warmup_steps=10, decay_start=50, decay_end=90
    )
    for step in (9, 10, 30, 50):
        assert float(learning_rate(config, step)) == pytest.approx(2.0, rel=1e-6)
    for step, left in ((51, 39 / 40), (70, 0.5), (89, 1 / 40), (90, 0.0), (500, 0.0)):
        expected = 2.0 * (0.25 + 0.75 * left)
        assert float(learning_rate(config, step)) == pytest.approx(expected, rel=1e-6)


def test_constant_never_falls():
    config = ScheduleConfig(kind="constant", peak=3e-4, warmup_steps=2, decay_end=3)
    assert float(learning_rate(config, 10**6)) == pytest.approx(3e-4, rel=1e-6)


@pytest.mark.parametrize("kind", ["cosine", "wsd", "constant"])
def test_without_warm_up_the_first_step_has_the_peak(kind):
    config = ScheduleConfig(kind=kind, peak=0.5, warmup_steps=0, decay_start=5, decay_end=10)
    assert float(learning_rate(config, 0)) == pytest.approx(0.5)


def test_the_rate_is_the_same_traced_and_not():
    config = ScheduleConfig(kind="cosine", peak=0.5, warmup_steps=3, decay_end=30)
    traced = jax.jit(lambda step: learning_rate(config, step))
    for step in (0, 2, 3, 17, 40):
        assert float(traced(step)) == pytest.approx(float(learning_rate(config, step)), rel=1e-6)


# After growth. Each expected rate is written out from the step that the mode counts from.

GROWN_AT = 40
COSINE = {"kind": "cosine", "peak": 2.0, "final": 0.1, "warmup_steps": 10, "decay_end": 110}


def cosine_share(step: int) -> float:
    return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * (step - 10) / 100))


@pytest.mark.parametrize("stage_step", [0, 4, 9, 10, 30, 69])
def test_restart_knows_nothing_of_the_base(stage_step):
    config = ScheduleConfig(after_growth="restart", **COSINE)
    assert float(learning_rate(config, stage_step, GROWN_AT)) == float(
        learning_rate(config, stage_step)
    )


@pytest.mark.parametrize("stage_step", [0, 4, 9, 10, 30, 69])
def test_rewarm_climbs_onto_the_curve_of_the_whole_lineage(stage_step):
    config = ScheduleConfig(after_growth="rewarm", **COSINE)
    climbed = min(1.0, (stage_step + 1) / 10)
    expected = 2.0 * climbed * cosine_share(GROWN_AT + stage_step)
    assert float(learning_rate(config, stage_step, GROWN_AT)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("stage_step", [0, 4, 9, 10, 30, 69])
def test_keep_goes_on_as_if_nothing_had_grown(stage_step):
    config = ScheduleConfig(after_growth="keep", **COSINE)
    expected = 2.0 * cosine_share(GROWN_AT + stage_step)
    assert float(learning_rate(config, stage_step, GROWN_AT)) == pytest.approx(expected, rel=1e-6)


def test_keep_finishes_a_warm_up_that_growth_cut_short():
    config = ScheduleConfig(after_growth="keep", **COSINE)
    rates = [float(learning_rate(config, step, grown_at=6)) for step in range(5)]
    np.testing.assert_allclose(rates, [1.4, 1.6, 1.8, 2.0, 2.0], rtol=1e-6)


@pytest.mark.parametrize("after_growth", ["rewarm", "keep"])
def test_wsd_grown_late_stays_at_the_peak_and_falls_when_the_lineage_does(after_growth):
    config = ScheduleConfig(
        kind="wsd",
        after_growth=after_growth,
        peak=2.0,
        final=0.25,
        warmup_steps=10,
        decay_start=100,
        decay_end=140,
    )
    first = 0.2 if after_growth == "rewarm" else 2.0
    actual = {step: float(learning_rate(config, step, grown_at=80)) for step in (0, 9, 20, 40, 60)}
    halfway = 2.0 * (0.25 + 0.75 * 0.5)
    assert actual == pytest.approx({0: first, 9: 2.0, 20: 2.0, 40: halfway, 60: 0.5}, rel=1e-6)


def test_before_any_growth_the_three_are_one():
    for step in (0, 5, 9, 10, 60, 200):
        rates = {
            float(learning_rate(ScheduleConfig(after_growth=mode, **COSINE), step))
            for mode in ("restart", "rewarm", "keep")
        }
        assert len(rates) == 1
