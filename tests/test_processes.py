"""Processes that fail together: what each leaves in files for the others."""

import jax
import pytest

from prts_jax import processes
from prts_jax.errors import UserError
from prts_jax.processes import FOLDER, Reports, StoppedElsewhereError, all_processes, run_on_first


@pytest.fixture
def process(monkeypatch):
    """`process(n)` makes this process the n-th of three."""
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.1)
    return lambda number: monkeypatch.setattr(jax, "process_index", lambda: number)


@pytest.fixture
def reports(process, tmp_path):
    """The `Reports` of three processes on one directory."""
    made = []
    for number in range(3):
        process(number)
        made.append(Reports(str(tmp_path)))
    return made


def test_all_get_the_reports_of_all(process, reports):
    for number in (2, 0, 1):
        process(number)
        reports[number].check()
        reports[number].write({"bytes": number})
    assert reports[1].wait() == [{"bytes": 0}, {"bytes": 1}, {"bytes": 2}]
    reports[0].remove()


def test_one_error_stops_the_others_and_is_told_once(process, reports):
    process(0)
    reports[0].write({"bytes": 1})
    process(2)
    reports[2].write({"bytes": 1})
    process(1)
    reports[1].fail(UserError("head: is damaged"))
    for number in (0, 2):
        process(number)
        with pytest.raises(StoppedElsewhereError, match="^process 1: head: is damaged$"):
            reports[number].check()
        with pytest.raises(StoppedElsewhereError, match="^process 1: head: is damaged$"):
            reports[number].wait()


def test_who_is_stopped_does_not_repeat_the_error_as_its_own(process, reports, tmp_path):
    for number, error in (
        (1, ValueError("no space\nleft")),
        (0, StoppedElsewhereError("process 1: ValueError: no space")),
    ):
        process(number)
        others = {0, 1, 2} - {number}
        for other in others:
            file = tmp_path / FOLDER / f"{other}.json"
            if not file.exists():
                file.write_text('{"bytes": 1}')
        reports[number].fail(error)
    process(2)
    with pytest.raises(StoppedElsewhereError, match="^process 1: ValueError: no space$"):
        reports[2].check()


def test_a_full_disk_still_stops_the_others(process, reports, monkeypatch, tmp_path):
    def no_space(path: str, text: str) -> None:
        raise OSError(28, "No space left on device")

    for number in (0, 2):
        process(number)
        reports[number].write({})
    process(1)
    monkeypatch.setattr(processes, "write_atomically", no_space)
    reports[1].fail(OSError(28, "No space left on device"))
    process(2)
    with pytest.raises(StoppedElsewhereError, match="process 1: failed; its own output says why"):
        reports[2].check()


def test_a_directory_that_is_not_shared_is_named(process, tmp_path):
    process(1)
    with pytest.raises(UserError, match="process 0 made it and process 1 does not see it"):
        Reports(str(tmp_path / "elsewhere"))


def test_alone_a_process_just_does_it():
    with pytest.raises(ValueError, match="as it is"), all_processes():
        raise ValueError("as it is")
    assert run_on_first(lambda: {"layers": [1, 2]}) == {"layers": [1, 2]}
