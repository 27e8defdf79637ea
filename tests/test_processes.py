"""Processes that fail together."""

import errno

import jax
import numpy as np
import pytest

from prts_jax import processes
from prts_jax.errors import StorageError, UserError
from prts_jax.processes import StoppedElsewhereError, all_processes


@pytest.fixture
def messages(monkeypatch: pytest.MonkeyPatch) -> dict[int, bytes]:
    """Makes this process the second of three; holds the messages that the others send."""
    others: dict[int, bytes] = {}

    def gather(own: np.ndarray) -> np.ndarray:
        rows = [np.zeros_like(own), own, np.zeros_like(own)]
        for process, text in others.items():
            rows[process] = np.frombuffer(text.ljust(own.size, b"\0"), np.uint8)
        return np.stack(rows)

    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gather)
    return others


def test_an_error_elsewhere_is_raised_here_with_its_process(messages: dict[int, bytes]) -> None:
    messages[2] = b"head: is damaged"
    expected = pytest.raises(StoppedElsewhereError, match="^process 2: head: is damaged$")
    with expected, all_processes():
        pass


def test_failing_storage_elsewhere_is_failing_storage_here(messages: dict[int, bytes]) -> None:
    messages[0] = processes._message(OSError(errno.ENOSPC, "full", "d/f")).encode()
    expected = pytest.raises(StorageError, match="^process 0: d/f: cannot be used .No space left")
    with expected, all_processes():
        pass


def test_a_process_raises_its_own_error_unchanged(messages: dict[int, bytes]) -> None:
    messages[0] = b"another error"
    with pytest.raises(UserError, match="^my own$"), all_processes():
        raise UserError("my own")


def test_no_error_anywhere_lets_all_go_on(messages: dict[int, bytes]) -> None:
    with all_processes():
        pass


def test_a_process_alone_just_runs_the_block() -> None:
    with pytest.raises(ValueError, match="as it is"), all_processes():
        raise ValueError("as it is")
