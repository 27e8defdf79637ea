"""Lineage: stored as JSON, continued by growth."""

import dataclasses
import json

import pytest

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.records import ChangeRecord, GrowthRecord
from prts_jax.config import to_dict
from prts_jax.errors import UserError
from prts_jax.growth.operators import make_map
from tests.checkpoint.tiny import MODEL, lineage_of, random_params


@pytest.fixture(scope="module")
def lineage() -> Lineage:
    return lineage_of(random_params())


def test_a_lineage_survives_json(lineage):
    changed = dataclasses.replace(lineage, changes=(ChangeRecord(3, "data.seed", 0, 1),))
    assert Lineage.from_json(json.loads(json.dumps(changed.to_json()))) == changed


def test_the_model_is_that_of_the_checkpoint(lineage):
    assert lineage.model == MODEL


def test_growth_starts_a_stage_and_keeps_what_was_spent(lineage):
    growth_map = make_map(MODEL, None, "stack", 2, "")
    grown = lineage.grown(growth_map, {"head": ("0" * 16,)})
    assert grown.stage_step == 0
    for kept in ("step", "position", "tokens", "flops", "flops_6nd", "store", "changes"):
        assert getattr(grown, kept) == getattr(lineage, kept)
    assert grown.model == growth_map.target
    assert grown.config == {**lineage.config, "model": to_dict(growth_map.target)}
    assert grown.digests == {"head": ("0" * 16,)}
    (record,) = grown.growth
    assert record == GrowthRecord(
        lineage.step, lineage.tokens, lineage.flops, growth_map, optimizer="reset"
    )


def test_growth_upon_growth_is_told_oldest_first(lineage):
    twice = make_map(MODEL, None, "stack", 2, "")
    again = make_map(twice.target, None, "layers", 0, "0:6,3:6")
    grown = lineage.grown(twice, {}).grown(again, {})
    assert [record.map.operator for record in grown.growth] == ["stack", "layers"]
    assert grown.model.layers == 9


def test_another_format_is_refused(lineage):
    with pytest.raises(UserError, match=r"here: has format 99 and this version reads 1"):
        Lineage.from_json(lineage.to_json() | {"format": 99}, "here")


def test_missing_keys_are_named(lineage):
    values = lineage.to_json()
    del values["tokens"], values["digests"]
    with pytest.raises(UserError, match="lacks digests, tokens"):
        Lineage.from_json(values)
