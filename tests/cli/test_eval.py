"""`prts eval` as a user meets it: figures, saved results, comparisons, and refusals of one line."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from prts_jax.cli import eval as eval_command
from prts_jax.cli import run
from tests.conftest import RunPrts
from tests.evaluate.conftest import words

__all__ = ["words"]  # a fixture

FLOAT32 = ("--dtype=float32", "--batch=4")


def evaluate(capsys: pytest.CaptureFixture[str], *flags: str) -> Any:
    capsys.readouterr()
    assert eval_command.main([*flags, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    assert run(eval_command.main, flags, "eval") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    [line] = shown.err.strip().splitlines()
    return line


@pytest.fixture(scope="module")
def saved(words: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of two checkpoints on the store, as files `model.json` and `other.json`."""
    folder = tmp_path_factory.mktemp("saved")
    for name in ("model", "other"):
        flags = ("--perplexity", f"--data={words / 'store'}", f"--save={folder / name}.json")
        assert eval_command.main([f"--checkpoint={words / name}", *flags, *FLOAT32]) == 0
    return folder


def test_json_has_the_documented_keys(
    words: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = (f"--checkpoint={words / 'model'}", "--perplexity", f"--text={words / 'text'}")
    actual = evaluate(capsys, *flags, *FLOAT32)
    assert set(actual) == {"loss", "perplexity", "tokens", "bits_per_byte", "per_source", "length"}
    assert actual["perplexity"] == pytest.approx(math.exp(actual["loss"]))
    assert set(actual["per_source"]["cats"]) == {"loss", "perplexity", "tokens", "bits_per_byte"}
    assert eval_command.main([*flags, *FLOAT32]) == 0
    [line] = re.findall(r"^all .*", capsys.readouterr().out, re.MULTILINE)
    assert line.split()[1:3] == ["84", f"{actual['loss']:.4f}"]


def test_saved_results_are_compared(
    words: Path,
    saved: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = [f"small={saved / 'model.json'}", str(saved / "other.json")]
    actual = evaluate(capsys, "--compare", *files)
    assert actual["checkpoints"] == ["small", "other"]
    [loss] = [row for row in actual["rows"] if (row["group"], row["name"]) == ("loss", "all")]
    of_each = [json.loads((saved / f"{name}.json").read_text()) for name in ("model", "other")]
    values = [one["results"]["loss"] for one in of_each]
    assert [one["value"] for one in loss["scores"]] == pytest.approx(values)
    change = loss["differences"][1]
    assert change["value"] == pytest.approx(values[1] - values[0])
    assert change["paired"]
    assert loss["differences"][0] is None

    assert eval_command.main(["--compare", *files]) == 0
    table = capsys.readouterr().out
    assert re.search(r"small +other +other − small", table)
    assert re.search(rf"loss all +{values[0]:.4f} ± ", table)
    assert "half of a 95% interval" in table


def test_several_checkpoints_are_compared(
    words: Path,
    saved: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = [f"--checkpoint={words / name}" for name in ("model", "other")]
    together = evaluate(capsys, *flags, "--perplexity", f"--data={words / 'store'}", *FLOAT32)
    files = [str(saved / "model.json"), str(saved / "other.json")]
    assert together == evaluate(capsys, "--compare", *files)


def test_differences_are_drawn(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(saved / "model.json"), str(saved / "other.json")]
    evaluate(capsys, "--compare", *files, f"--picture={tmp_path / 'it.png'}")
    assert (tmp_path / "it.png").read_bytes().startswith(b"\x89PNG")
    missing = tmp_path / "missing" / "it.png"
    assert "no such folder" in refusal(capsys, "--compare", *files, f"--picture={missing}")


def test_results_are_not_overwritten(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = saved / "model.json"
    before = file.read_text()
    flags = ("--checkpoint=/no/such", "--perplexity", f"--save={file}")
    assert f"--save={file}: exists" in refusal(capsys, *flags)
    assert file.read_text() == before


@pytest.mark.parametrize("name", ["x" * 300, "file/results.json"], ids=["long", "below a file"])
def test_results_that_cannot_be_saved_are_refused_before_the_evaluation(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    flags = ("--checkpoint=/no/such", "--perplexity", f"--save={tmp_path / name}")
    assert "cannot be written (" in refusal(capsys, *flags)


def test_every_checkpoint_is_looked_for_before_one_is_evaluated(
    words: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eval_command, "_evaluate", lambda *_: pytest.fail("evaluated"))
    flags = (f"--checkpoint={words / 'model'}", "--checkpoint=/no/such", "--perplexity")
    assert "/no/such: does not exist" in refusal(capsys, *flags)


REFUSALS = {
    "no checkpoint": (["--perplexity"], "--checkpoint: is missing; name one"),
    "nothing to do": (["--checkpoint=c"], "give --perplexity, --tasks=NAMES, or both"),
    "twice": (
        ["--checkpoint=c", "--checkpoint=c", "--perplexity"],
        "--checkpoint=c: is given twice",
    ),
    "no names": (["--checkpoint=c", "--tasks=,"], "give --perplexity, --tasks=NAMES, or both"),
    "data and text": (
        ["--checkpoint=c", "--perplexity", "--data=a", "--text=b"],
        "--data, --text: both are given; keep one",
    ),
    "data without perplexity": (
        ["--checkpoint=c", "--tasks=piqa", "--data=a"],
        "are for --perplexity; add it",
    ),
    "limit without tasks": (
        ["--checkpoint=c", "--perplexity", "--limit=3"],
        "need --tasks; add it",
    ),
    "documents without perplexity": (
        ["--checkpoint=c", "--tasks=piqa", "--documents=no"],
        "are for --perplexity; add it",
    ),
    "dtype": (
        ["--checkpoint=c", "--perplexity", "--dtype=int8"],
        "argument --dtype: invalid choice: 'int8'",
    ),
    "batch": (["--checkpoint=c", "--perplexity", "--batch=0"], "must be above 0"),
    "a word for a number": (
        ["--checkpoint=c", "--perplexity", "--batch=x"],
        "--batch: invalid int value: 'x'; see `prts eval --help`",
    ),
    "task of two lines": (
        ["--checkpoint=c", "--tasks=piqa,arc\neasy"],
        "--tasks: 'arc\\neasy' is no name of a task",
    ),
    "overlong task": (["--checkpoint=c", "--tasks=" + "x" * 300], "is no name of a task"),
    "no task folder": (
        ["--checkpoint=c", "--tasks=piqa", "--include_path=/no/such"],
        "--include_path=/no/such: no such folder",
    ),
    "no such checkpoint": (["--checkpoint=/no/such", "--perplexity"], "/no/such: "),
    "one file": (["--compare", "a.json"], "--compare: needs two files or more"),
    "no such file": (["--compare", "/no/a.json", "/no/b.json"], "/no/a.json: cannot be read"),
    "compare and evaluate": (
        ["--compare", "a", "b", "--perplexity"],
        "--compare: reads saved results",
    ),
    "picture of one": (
        ["--checkpoint=c", "--perplexity", "--picture=p.png"],
        "--picture: is of a comparison",
    ),
    "save several": (
        ["--checkpoint=a", "--checkpoint=b", "--perplexity", "--save=s"],
        "--save: is for one checkpoint",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_contradictory_flags_are_refused_in_one_line(
    case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags, message = REFUSALS[case]
    assert message in refusal(capsys, *flags)


def test_a_folder_that_is_no_checkpoint_is_refused(
    words: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refusal(capsys, f"--checkpoint={words / 'text'}", "--perplexity")
    assert str(words / "text") in line
    assert "no complete checkpoint there" in line


def test_files_that_are_no_results_are_refused(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = json.loads((saved / "model.json").read_text())
    damaged = {
        "not json": "{",
        "another file": "[1]",
        "another format": json.dumps({"format": "x"}),
        "no scores": json.dumps({**whole, "scores": [{}]}),
    }
    for text in damaged.values():
        (tmp_path / "it.json").write_text(text)
        line = refusal(capsys, "--compare", str(saved / "model.json"), str(tmp_path / "it.json"))
        assert f"{tmp_path / 'it.json'}: holds no results" in line
    again = [str(saved / "model.json")] * 2
    assert "is named twice" in refusal(capsys, "--compare", *again)


def test_a_store_of_a_larger_vocabulary_and_a_checkpoint_without_tokenizer(
    words: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from tests.checkpoint.tiny import write_source
    from tests.train import tiny

    tiny.write_store(tmp_path / "store", 100, vocab=64)
    flags = (f"--checkpoint={words / 'model'}", "--perplexity")
    assert "its tokenizer has 64 entries and the model 48" in refusal(
        capsys, *flags, f"--data={tmp_path / 'store'}"
    )
    write_source(tmp_path / "bare")
    line = refusal(
        capsys, f"--checkpoint={tmp_path / 'bare'}", "--perplexity", f"--text={words / 'text'}"
    )
    assert "no tokenizer in" in line
    assert "--tokenizer" in line


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "devices"), [("data", 8), ("text", 3)])
def test_several_devices_equal_one(
    words: Path,
    run_prts: RunPrts,
    kind: str,
    devices: int,
) -> None:
    """Of 5.25 rows in a batch most are padding; 3 devices divide neither width nor heads."""
    where = words / {"data": "store", "text": "text"}[kind]
    flags = ("eval", f"--checkpoint={words / 'model'}", "--perplexity", f"--{kind}={where}")
    one, several = (
        json.loads(run_prts(*flags, "--json", "--dtype=float32", devices=count).stdout)
        for count in (1, devices)
    )
    assert several.keys() == one.keys()
    for ours, theirs in (
        (several, one),
        *((several["per_source"][s], one["per_source"][s]) for s in ("cats", "text")),
    ):
        assert ours["tokens"] == theirs["tokens"]
        for name in ("loss", "perplexity", "bits_per_byte"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5)
