"""The compiler's statement about a program."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from prts_jax.aot import estimate

MEMORY = SimpleNamespace(
    output_size_in_bytes=7,
    alias_size_in_bytes=3,
    temp_size_in_bytes=20,
    generated_code_size_in_bytes=1,
    argument_size_in_bytes=100,
)


def unreadable() -> str:
    raise jax.errors.JaxRuntimeError("INTERNAL: an instruction has too many operands\nmore")


def test_the_memory_of_a_program_that_cannot_be_read_is_stated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = SimpleNamespace(memory_analysis=lambda: MEMORY, as_text=unreadable)
    monkeypatch.setattr(estimate, "compile_lowered", lambda *_: compiled)
    unused: Any = None
    result = estimate.estimate(unused, unused, {}, {}, {})
    assert (result.fits, result.hbm_bytes["total"]) == (True, 125)
    assert result.reason.startswith("time unknown: ")
    assert "too many operands" in result.reason
    assert result.estimated_seconds is None
