"""Files of the input that no command reads are counted and named."""

import json
import struct
from pathlib import Path

import pytest
import zstandard

from prts_jax.cli import data

TOKENIZER = "--tokenizer=data_pipelines/shakespeare/tokenizer.model"


def test_every_command_counts_and_names_the_files_that_it_does_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    row = {"text": "a", "meta": {"redpajama_set_name": "RedPajamaC4"}}
    turns = {"instruction": "a", "output": "b"}
    inputs = {
        "task/train/chunk1/example_train_0.jsonl.zst": zstandard.compress(json.dumps(row).encode()),
        "format/a.json": json.dumps([row, row]).encode(),
        "instructions/a.json": json.dumps([turns]).encode(),
        "import/a.bin": struct.pack("<7sQBQ2H", b"LITPKDS", 1, 8, 2, 1, 5),
    }
    for name, content in inputs.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(content)
        for other in ("notes.rst", "b.csv", "tokenizer_config.json", "_SUCCESS"):
            (tmp_path / name.split("/")[0] / other).write_text("{}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data_pipelines").symlink_to(Path(data.__file__).parents[2] / "data_pipelines")
    for command in (
        ["cache", "--workers=1", "--task=slimpajama", "--split=train", "--input=./task/"],
        ["cache", "--workers=1", "--format=jsonl", "--split=train", "--input=./format"],
        ["instructions", "--length=64", "--input=./instructions"],
        ["import", "--input=./import"],
    ):
        name = command[-1].split("=")[1]
        data.main([*command, TOKENIZER, f"--output={tmp_path}/out/{name}"])
        errors = capsys.readouterr().err
        assert f"{name}: 2 files are not read (1 .csv, 1 .rst); the first is b.csv" in errors
