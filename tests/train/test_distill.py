"""Distillation: its loss against NumPy and torch, its bookkeeping, and that a run resumes it."""

import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.checkpoint.layout import complete_steps, read_lineage, resolve
from prts_jax.errors import UserError
from prts_jax.mesh import make_mesh
from prts_jax.model.architecture import declare
from prts_jax.model.counts import (
    count_parameters,
    forward_flops_per_token,
    six_n_d_per_token,
    training_flops_per_token,
)
from prts_jax.model.initialise import init_params
from prts_jax.train.distill import soft_losses
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step
from tests.train import tiny
from tests.train.one_step import make_batch, uneven_weights
from tests.train.tiny import assert_same, curve, stored_params

STUDENT, TEACHER = np.random.default_rng(0).normal(0, 3, (2, 2, 5, 11)).astype(np.float32)


def softmax(x):
    exp = np.exp(x - x.max(-1, keepdims=True), dtype=np.float64)
    return exp / exp.sum(-1, keepdims=True)


def test_the_loss_is_the_cross_entropy_between_the_distributions():
    expected = -(softmax(TEACHER) * np.log(softmax(STUDENT))).sum(-1)
    np.testing.assert_allclose(soft_losses(STUDENT, TEACHER), expected, rtol=1e-5)


def test_its_gradient_is_the_difference_of_the_distributions():
    gradient = jax.grad(lambda x: soft_losses(x, jnp.asarray(TEACHER)).sum())(STUDENT)
    np.testing.assert_allclose(gradient, softmax(STUDENT) - softmax(TEACHER), atol=1e-6)


def test_its_gradient_is_that_of_torchs_kl_divergence():
    torch = pytest.importorskip("torch")
    student = torch.tensor(STUDENT, dtype=torch.float64, requires_grad=True)
    torch.nn.functional.kl_div(
        student.log_softmax(-1),
        torch.tensor(TEACHER, dtype=torch.float64).softmax(-1),
        reduction="sum",
    ).backward()
    gradient = jax.grad(lambda x: soft_losses(x, jnp.asarray(TEACHER)).sum())(STUDENT)
    np.testing.assert_allclose(gradient, student.grad.numpy(), atol=1e-6)


def test_a_teacher_that_says_the_same_teaches_nothing_and_learns_nothing():
    same = jnp.asarray(STUDENT)
    gradient = jax.grad(lambda x: soft_losses(x, same).sum())(same)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    gradient = jax.grad(lambda x: soft_losses(jnp.asarray(STUDENT), x).sum())(jnp.asarray(TEACHER))
    np.testing.assert_array_equal(gradient, 0)


# In a step


@functools.cache
def params_of(seed: int):
    return init_params(declare(tiny.MODEL), tiny.MODEL.layers, "paper", seed)


def one_step(weight, teacher_seed=1, **changes):
    """Metrics and first moments (a tenth of the gradient) of one step from fresh parameters."""
    config = tiny.run_config(optimizer__clip=0.0, distillation__weight=weight, **changes)
    mesh = make_mesh(config.mesh)
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    optimizer = make_optimizer(config)
    state = fresh_state(jax.device_put(params_of(0), whole), optimizer, mesh)
    step = make_train_step(config, optimizer, teacher=tiny.MODEL)
    state, metrics = step(
        jax.tree.map(jnp.copy, state), make_batch(weights=uneven_weights()), params_of(teacher_seed)
    )
    return metrics, state.optimizer[1].mu


@pytest.mark.slow
def test_the_loss_shown_stays_the_language_models_and_gradients_mix_by_weight():
    metrics, mixed = one_step(0.25)
    shown, alone = one_step(0.0)
    _, taught = one_step(1.0)
    assert float(metrics.loss) == pytest.approx(float(shown.loss), rel=1e-6)
    assert float(metrics.distillation_loss) > 0
    for actual, lm, soft in zip(*map(jax.tree.leaves, (mixed, alone, taught)), strict=True):
        scale = float(jnp.abs(lm).max())
        np.testing.assert_allclose(actual, 0.75 * lm + 0.25 * soft, rtol=1e-4, atol=1e-6 * scale)


@pytest.mark.slow
def test_a_teacher_equal_to_its_student_has_no_gradient():
    _, taught = one_step(1.0, teacher_seed=0)
    _, other = one_step(1.0, teacher_seed=1)
    for nothing, something in zip(*map(jax.tree.leaves, (taught, other)), strict=True):
        assert float(jnp.abs(nothing).max()) < 1e-4 * float(jnp.abs(something).max())


@pytest.mark.slow
def test_micro_batches_are_taught_alike():
    whole, _ = one_step(0.5)
    split, _ = one_step(0.5, train__accumulation=2)
    for name in ("loss", "distillation_loss", "gradient_norm"):
        assert float(getattr(split, name)) == pytest.approx(float(getattr(whole, name)), rel=1e-5)


# In a run


DISTILLED = {"distillation__teacher": "source", "train__steps": 4, "evaluation__every_steps": 0}


def grown_by_zero(base, **changes):
    """Twice as deep with silent layers: at first the student is the teacher."""
    return {
        "model": tiny.deeper(4),
        "init__grow_from": str(base.workdir),
        "init__growth__operator": "zero",
        **DISTILLED,
        **changes,
    }


def test_a_grown_run_is_taught_by_its_source_and_books_the_teachers_flops(base, run, tmp_path):
    lines = run(tmp_path, **grown_by_zero(base))
    # Before it has moved, the student is its teacher, whose entropy is the least there can be.
    assert 0 < lines[1]["distillation_loss"] <= np.log(tiny.MODEL.vocab) + 1e-6
    big, small = declare(tiny.deeper(4)), declare(tiny.MODEL)
    own = training_flops_per_token(tiny.deeper(4), big, 16)
    teachers = forward_flops_per_token(tiny.MODEL, small, 16)
    assert 3 * teachers == training_flops_per_token(tiny.MODEL, small, 16)
    assert lines[2]["flops"] - lines[1]["flops"] == 8 * 16 * (own + teachers)
    assert lines[2]["flops_6nd"] - lines[1]["flops_6nd"] == 8 * 16 * (
        six_n_d_per_token(big) + 2 * count_parameters(small).total
    )
    teacher = read_lineage(resolve(str(tmp_path))).teacher
    assert teacher is not None
    assert teacher["path"] == resolve(str(base.workdir))


@pytest.mark.slow
def test_a_distilled_run_resumes_to_the_bit_also_where_its_teacher_has_moved(base, run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(base.workdir, moved)
    every = {"evaluation__every_steps": 2}
    whole = run(tmp_path / "whole", **grown_by_zero(base, **every))
    first = grown_by_zero(base, init__grow_from=str(moved), train__steps=2, **every)
    run(tmp_path / "parts", **first)
    shutil.rmtree(moved)
    parts = run(tmp_path / "parts", **grown_by_zero(base, **every))
    assert curve(parts) == curve(whole)
    assert_same(stored_params(tmp_path / "parts"), stored_params(tmp_path / "whole"))


@pytest.mark.slow
def test_another_teacher_on_resume_is_refused(base, run, tmp_path):
    teacher, grown = tmp_path / "teacher", tmp_path / "run"
    shutil.copytree(base.workdir, teacher)
    named = grown_by_zero(base, distillation__teacher=str(teacher), train__steps=2)
    run(grown, **named)
    other = run(tmp_path / "other", train__steps=2, init__seed=5)
    assert other
    with pytest.raises(UserError, match=r"config\.distillation\.teacher: was"):
        run(grown, **grown_by_zero(base, distillation__teacher=str(tmp_path / "other")))
    shutil.rmtree(teacher)
    shutil.copytree(tmp_path / "other", teacher)
    with pytest.raises(UserError, match="is not what the run began with"):
        run(grown, **{**named, "train__steps": 4})


@pytest.mark.slow
def test_a_stages_teacher_is_kept_while_it_teaches(run, tmp_path):
    """The end of the stage before is the source: retention must not drop it."""
    run(
        tmp_path,
        train__steps=2,
        checkpoint__every_steps=1,
        checkpoint__keep=1,
        evaluation__every_steps=0,
        growth__stages=(
            {"steps": 2},
            {"steps": 3, "model": {"layers": 4}, "distillation": {"teacher": "source"}},
        ),
    )
    assert complete_steps(str(tmp_path / "checkpoints")) == [2, 5]
    assert read_lineage(resolve(str(tmp_path))).teacher["path"].endswith("/2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distillation__teacher": "source"}, "is the checkpoint that is grown, and nothing is"),
        ({"distillation__teacher": "/nowhere"}, "/nowhere: does not exist"),
    ],
)
def test_a_teacher_that_is_not_there_is_refused(run, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, **changes)


def test_a_teacher_with_another_vocabulary_is_refused(base, run, tmp_path):
    with pytest.raises(UserError, match="has a vocabulary of 64 and the model one of 96"):
        run(tmp_path, model__vocab=96, distillation__teacher=str(base.workdir))


def test_a_weight_beyond_one_is_refused():
    with pytest.raises(UserError, match=r"config\.distillation\.weight: is 1\.5; a share of 0 to"):
        tiny.run_config(distillation__weight=1.5)
