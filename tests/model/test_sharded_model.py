"""The model on eight devices computes what it computes on one, to rounding (float32)."""

from collections.abc import Callable
from typing import Any

import pytest

MESHES = [
    "fsdp=8",
    "fsdp=4 tensor=2",
    "data=2 fsdp=2 tensor=2",
    "fsdp=2 sequence=2 tensor=2",
    "changed rules",
]


@pytest.fixture(scope="module")
def report(run_program: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return run_program("sharded_model", devices=8)


def test_every_mesh_is_tried(report: dict[str, Any]) -> None:
    assert sorted(report) == sorted([*MESHES, "splash"])


@pytest.mark.parametrize("quantity", ["loss", "logits", "grads"])
@pytest.mark.parametrize("mesh", MESHES)
def test_equals_one_device(report: dict[str, Any], mesh: str, quantity: str) -> None:
    assert report[mesh][quantity] < 2e-6


@pytest.mark.parametrize("mesh", MESHES)
def test_initial_values_do_not_depend_on_the_mesh(report: dict[str, Any], mesh: str) -> None:
    assert report[mesh]["initial values differ in"] == []


@pytest.mark.parametrize(
    ("mesh", "embed", "tensor"),
    [(MESHES[0], 8, 1), (MESHES[1], 4, 2), (MESHES[2], 2, 2), (MESHES[3], 4, 2)],
)
def test_leaves_are_split_as_declared(
    report: dict[str, Any], mesh: str, embed: int, tensor: int
) -> None:
    parts = report[mesh]["parts of leaves"]
    norms = {"layers/attention_norm", "layers/mlp_norm", "final_norm"}
    assert parts == {path: embed if path in norms else embed * tensor for path in parts}


def test_leaves_are_split_as_changed_rules_say(report: dict[str, Any]) -> None:
    """The rules split the vocabulary alone."""
    parts = report["changed rules"]["parts of leaves"]
    vocabulary = {"token_embedding", "head"}
    assert parts == {path: 8 if path in vocabulary else 1 for path in parts}


@pytest.mark.parametrize("rows", ["one document", "documents"])
def test_splash_on_split_positions_equals_xla_on_one_device(
    report: dict[str, Any], rows: str
) -> None:
    assert report["splash"][rows] < 1e-5


@pytest.mark.parametrize("mesh", MESHES)
def test_logits_are_split_over_all_devices(report: dict[str, Any], mesh: str) -> None:
    assert report[mesh]["parts of logits"] == 8


@pytest.mark.slow
@pytest.mark.alone
def test_two_processes_of_four_devices_equal_one_device(
    run_joined_programs: Callable[..., list[dict[str, Any]]],
) -> None:
    [alone] = run_joined_programs("joined_processes", processes=1, devices=1)
    joined = run_joined_programs("joined_processes", processes=2, devices=4)
    assert [actual.pop("process") for actual in joined] == [0, 1]
    assert joined[0] == joined[1]
    assert (joined[0]["processes"], joined[0]["devices"]) == (2, 8)
    assert joined[0]["loss"] == pytest.approx(alone["loss"], rel=2e-6)
