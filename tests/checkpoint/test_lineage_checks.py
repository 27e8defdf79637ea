"""Lineages with values that cannot be right, as of a damaged or edited file."""

import copy
import dataclasses
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.records import BranchRecord, ChangeRecord, SkipRecord
from prts_jax.cli import family_tree, inspect
from prts_jax.errors import UserError
from prts_jax.growth.operators import make_map
from prts_jax.special_ids import SpecialIds
from tests.checkpoint.tiny import MODEL, lineage_of, random_params

LOSS = {"step": 7, "validation_loss": 2.5}
LEARNING = {"steps": 3, "tokens": 9, "flops": 1e9, "first_loss": 3.0, "last_loss": 2.0}
NESTED: list[Any] = []
for _ in range(300):
    NESTED = [NESTED]
WRONG = [None, [], {}, "\n\x1b[31m", -1, float("nan"), float("inf"), 10**400, True, NESTED, [1]]


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """A lineage with every kind of record, as JSON values."""
    first = dataclasses.replace(lineage_of(random_params()), evaluation=LOSS)
    grown = first.grown(make_map(MODEL, None, "stack", 2, ""), first.digests, LEARNING)
    return dataclasses.replace(
        grown,
        step=12,
        stage_step=5,
        changes=(
            ChangeRecord(9, "data.seed", 0, 1),
            ChangeRecord(8, "data.instructions", False, True, 5000, 1.6e12, LOSS),
        ),
        imported={"format": "hf", "path": "x", "dtype": "float32", "length": 2048},
        evaluation=LOSS,
        teacher={"path": "t", "digest": "0" * 16},
        special_ids=SpecialIds(),
        branches=(BranchRecord(10, 3, 0, 7000, 1e12, "/x"),),
        skipped=(SkipRecord(11, 5000),),
    ).to_json()


def fields(values: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yields the path of each value, of the first two of a list, once for equal sections."""
    for key in values if isinstance(values, dict) else range(min(len(values), 2)):
        yield (*path, key)
        if (path == ("config",) and key not in ("model", "data")) or key in ("target", "digests"):
            continue
        if isinstance(values[key], dict | list):
            yield from fields(values[key], (*path, key))


def changed(values: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Returns a copy in which the value at a path is another."""
    inner = values = copy.deepcopy(values)
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return values


def test_wrong_values_are_refused_in_one_line_or_shown_as_they_are(values: dict[str, Any]) -> None:
    """Every field in turn, with some types or ranges other than its own."""
    assert Lineage.from_json(values).to_json() == values
    refused = 0
    turns = itertools.cycle(WRONG)
    for path in fields(values):
        for wrong in itertools.islice(turns, 4):
            try:
                lineage = Lineage.from_json(changed(values, path, wrong), "here")
            except UserError as error:
                assert str(error).startswith("here: ")
                refused += 1
                continue
            shown = [family_tree.draw("x", lineage), *inspect.table("x", lineage, {})]
            json.dumps(inspect.as_json(lineage, {}))
            assert not any("\x1b" in text for text in shown)
    assert refused > 200


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("tokens",), 1.5),
        (("flops",), float("nan")),
        (("evaluation", "validation_loss"), "2.5"),
        (("changes", 1, "evaluation"), {"step": 8}),
        (("growth", 0, "learning", "last_loss"), None),
        (("config", "data", "length"), "512"),
        (("config", "distillation"), "none"),
        (("position",), 10**400),
        (("flops_6nd",), -1),
        (("config", "model", "layers"), True),
    ],
)
def test_a_value_of_another_type_is_refused(
    values: dict[str, Any], path: tuple[Any, ...], wrong: Any
) -> None:
    with pytest.raises(UserError, match="the checkpoint is damaged"):
        Lineage.from_json(changed(values, path, wrong))
