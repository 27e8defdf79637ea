"""The training spans of a checkpoint's past add up to its whole."""

import dataclasses

import pytest

from prts_jax.checkpoint.records import ChangeRecord
from prts_jax.checkpoint.training_spans import training_spans
from prts_jax.growth.operators import make_map
from tests.checkpoint.tiny import MODEL, lineage_of, random_params

BASE = lineage_of(random_params())


def later(lineage, steps):
    return dataclasses.replace(
        lineage,
        step=lineage.step + steps,
        stage_step=lineage.stage_step + steps,
        tokens=lineage.tokens + 512 * steps,
        flops=lineage.flops + 1e12 * steps,
    )


def test_a_model_that_never_grew_has_one_stage():
    (only,) = training_spans(BASE)
    assert (only.model, only.growth, only.share) == (MODEL, None, 1.0)
    assert (only.first_step, only.last_step) == (0, BASE.step)
    assert (only.tokens, only.flops) == (BASE.tokens, BASE.flops)


def test_stages_follow_each_other_and_add_up():
    stacked = make_map(MODEL, None, "stack", 2)
    wider = make_map(stacked.target, None, "split", widths="mlp=48")
    lineage = later(later(BASE.grown(stacked, {}), 3).grown(wider, {}), 5)
    actual = training_spans(lineage)
    assert [stage.growth for stage in actual] == [None, stacked, wider]
    assert [stage.model for stage in actual] == [MODEL, stacked.target, wider.target]
    assert [(stage.first_step, stage.last_step) for stage in actual] == [(0, 7), (7, 10), (10, 15)]
    assert [stage.tokens for stage in actual] == [BASE.tokens, 3 * 512, 5 * 512]
    assert sum(stage.flops for stage in actual) == lineage.flops
    assert sum(stage.share for stage in actual) == pytest.approx(1)


def test_each_change_is_in_the_stage_that_it_began():
    def change(step):
        return ChangeRecord(step, "data.batch", 1, 2)

    grown = later(BASE.grown(make_map(MODEL, None, "stack", 2), {}), 3)
    lineage = dataclasses.replace(grown, changes=(change(5), change(7), change(10)))
    base, deep = training_spans(lineage)
    assert base.changes == (change(5),)
    assert deep.changes == (change(7), change(10))


def test_each_stage_has_its_last_evaluation():
    def evaluated(lineage, loss):
        actual = {"step": lineage.step, "validation_loss": loss}
        return dataclasses.replace(lineage, evaluation=actual)

    grown = evaluated(BASE, 3.5).grown(make_map(MODEL, None, "stack", 2), {})
    assert [stage.evaluation for stage in training_spans(grown)] == [
        {"step": 7, "validation_loss": 3.5},
        {},
    ]
    base, deep = training_spans(evaluated(later(grown, 3), 3.25))
    assert base.evaluation["validation_loss"] == 3.5
    assert deep.evaluation == {"step": 10, "validation_loss": 3.25}


def test_a_checkpoint_that_was_grown_before_its_first_step_has_spent_nothing():
    fresh = dataclasses.replace(BASE, step=0, stage_step=0, tokens=0, flops=0.0)
    actual = training_spans(fresh.grown(make_map(MODEL, None, "stack", 2), {}))
    assert [stage.share for stage in actual] == [0.0, 0.0]
