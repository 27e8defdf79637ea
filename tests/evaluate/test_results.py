"""Saved results: written once, read as they were, named apart."""

import json
from pathlib import Path

import numpy as np
import pytest

from prts_jax.errors import UserError
from prts_jax.evaluate import results
from prts_jax.evaluate.results import Results
from prts_jax.evaluate.scores import Scores

SCORES = Scores("loss", "all", np.array([1.5, 2.5]), np.array([3.0, 4.0]), "tokens", "rows")
MADE = Results("step", "runs/a", {"loss": 4 / 7}, (SCORES,))


def test_what_is_saved_is_read(tmp_path: Path) -> None:
    results.save(MADE, str(tmp_path / "new" / "a.json"))
    found = results.load(str(tmp_path / "new" / "a.json"))
    assert (found.label, found.checkpoint, found.found) == ("a", "runs/a", {"loss": 4 / 7})
    [scores] = found.scores
    assert scores.pairs_with(SCORES)
    assert scores.values.tolist() == [1.5, 2.5]
    assert results.load(f"base={tmp_path / 'new' / 'a.json'}").label == "base"


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("mine")
    with pytest.raises(UserError, match=r"a\.json: exists; results are not overwritten"):
        results.save(MADE, str(tmp_path / "a.json"))
    assert (tmp_path / "a.json").read_text() == "mine"


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written") as no:
        results.save(MADE, str(tmp_path / "file" / "a.json"))
    assert "\n" not in str(no.value)


def test_files_of_one_name_are_called_as_they_were_named(tmp_path: Path) -> None:
    files = [str(tmp_path / day / "a.json") for day in ("monday", "tuesday")]
    for file in files:
        results.save(MADE, file)
    found = results.named_apart([results.load(file) for file in files], files)
    assert [one.label for one in found] == files
    with pytest.raises(UserError, match="is named twice"):
        results.named_apart([MADE, MADE], ["a", "a"])


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"format": "prts-eval-1"})])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match="holds no results"):
        results.load(str(tmp_path / "a.json"))
