"""The TPU compiler, which needs no TPU, takes splash attention and a model around it."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.conftest import LIBTPU_FLAGS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def compiled(run_program: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    pytest.importorskip("libtpu")
    # Without these libtpu waits for a metadata server, or aborts where another process uses it.
    env = {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "XLA_FLAGS": LIBTPU_FLAGS}
    return run_program("tpu_compile", env=env)


def test_attention_is_two_kernels_on_each_device_and_exchanges_nothing(
    compiled: dict[str, Any],
) -> None:
    """Forward, and backward fused into one; batch and heads stay where they are.

    Also where rows hold several documents.
    """
    programs = {name: actual for name, actual in compiled.items() if name.startswith("attention")}
    assert len(programs) == 4
    for name, actual in programs.items():
        assert actual == {"kernels": 2, "collectives": []}, name


def test_a_scanned_model_runs_the_kernels(compiled: dict[str, Any]) -> None:
    assert compiled["model remat=none"]["kernels"] == 2


def test_minimal_remat_keeps_what_attention_computed(compiled: dict[str, Any]) -> None:
    assert compiled["model remat=minimal"]["kernels"] == 2


def test_full_remat_runs_the_forward_kernel_again(compiled: dict[str, Any]) -> None:
    assert compiled["model remat=full"]["kernels"] == 3
