"""Micro-batches on a mesh: the step of one device, with gradients exchanged once a step."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT, prts_environment

pytestmark = pytest.mark.slow

CASES = ("whole batch", "micro_batch", "step", "step with tensor")


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.programs.exchanges"],
        cwd=ROOT,
        env=prts_environment(8, None),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout))


def moved(report: dict[str, Any], case: str, *kinds: str) -> int:
    """Returns the bytes of the collectives of these kinds in a step."""
    collectives = report[case]["collectives"]
    return sum(collectives[kind]["bytes"] for kind in kinds if kind in collectives)


@pytest.mark.parametrize("case", CASES)
def test_a_step_on_eight_devices_is_that_of_one(report: dict[str, Any], case: str) -> None:
    """Rows hold two documents, and their weights differ."""
    assert report[case]["error"] < 2e-5


def test_gradients_of_four_micro_batches_are_exchanged_once(report: dict[str, Any]) -> None:
    reductions = ("all-reduce", "reduce-scatter")
    whole = moved(report, "whole batch", *reductions)
    assert moved(report, "step", *reductions) <= 1.1 * whole
    assert moved(report, "micro_batch", *reductions) > 2 * whole


def test_weights_of_four_micro_batches_are_gathered_once(report: dict[str, Any]) -> None:
    whole = moved(report, "whole batch", "all-gather")
    assert moved(report, "step", "all-gather") <= 1.1 * whole
    assert moved(report, "micro_batch", "all-gather") > 2 * whole
