"""`prts data show`: a document with its row, and the batch that a run took at a step."""

import json
from pathlib import Path

import numpy as np
import pytest

from prts_jax.cli import data
from prts_jax.config import to_dict
from prts_jax.errors import UserError
from prts_jax.train.batches import training_batches
from tests.train import tiny

TOKENIZER = "data_pipelines/shakespeare"


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stores, web/train and code/train, of 40 rows each; the third row has an escape."""
    folder = tmp_path_factory.mktemp("show")
    for name in ("web", "code"):
        (folder / "text" / name).mkdir(parents=True)
        texts = [f"{name} number {row}, a text of some words" for row in range(1, 41)]
        texts[2] = "red \x1b[31m and\nblue"
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
        (folder / "text" / name / "rows.jsonl").write_text(lines)
        data.main(
            [
                *("cache", "--format=jsonl", "--split=train", f"--input={folder}/text/{name}"),
                *(f"--tokenizer={TOKENIZER}/tokenizer.model", f"--output={folder}/{name}"),
            ]
        )
    return folder


def test_a_document_with_its_file_row_and_text(stores: Path, capsys: pytest.CaptureFixture[str]):
    data.main(["show", f"{stores}/web/train", "--document=3"])
    printed = capsys.readouterr().out
    assert "document 3: rows.jsonl, row 3, set jsonl" in printed
    assert "text:\nred \\x1b[31m and\nblue\n" in printed
    data.main(["show", f"{stores}/web/train", "--document=40", "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values["text"] == "web number 40, a text of some words"
    assert (values["row"], values["size"]) == (40, len(values["tokens"]))


def test_a_batch_of_two_stores_is_what_the_trainer_reads(
    stores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    two = f"{stores}/web/train,0.7;{stores}/code/train,0.3"
    config = tiny.run_config(model__vocab=1024, data__train=two, data__validation="")
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    for step, position in ((1, 0), (6, 640)):
        data.main(["show", f"--run={tmp_path}", f"--step={step}", "--json"])
        values = json.loads(capsys.readouterr().out)
        assert values["position"] == position
        batch = training_batches(config, 1).rows(position, 0, 8)
        read = np.concatenate([batch["tokens"], batch["targets"][:, -1:]], axis=1)
        shown = [
            [token for part in window["documents"] for token in part["tokens"]]
            for window in values["windows"]
        ]
        assert shown == read.tolist()
        for window in values["windows"]:
            name = window["store"].split("/")[-2]
            for part in window["documents"]:
                assert part["row"] == part["document"]
                text = f"{name} number {part['row']}, a text of some words"
                assert part["text"].strip() in ("red \x1b[31m and\nblue", text) or (
                    len(part["tokens"]) < part["size"]
                )
    data.main(["show", f"--run={tmp_path}", "--step=2"])
    printed = capsys.readouterr().out
    assert "step 2: position 128, 8 windows of 16 + 1 tokens" in printed
    assert "\x1b" not in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--document=0"], r"--document=0: .* has documents 1 to 40"),
        (["--document=41"], r"--document=41: .* has documents 1 to 40"),
        (["--document=1", "--step=1"], "--step goes with --run"),
        (["--document=x"], "invalid int value"),
        (["--run=nowhere"], "name one of its steps"),
        (["--run=nowhere", "--step=1"], r"has no config\.json"),
        ([], "one of the arguments --document --run is required"),
    ],
)
def test_odd_flags_are_refused(stores: Path, flags: list[str], message: str):
    with pytest.raises(UserError, match=message):
        data.main(["show", f"{stores}/web/train", *flags])


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["verify", "STORE", "--workers=0"], "--workers=0: give at least 1"),
        (["verify", "STORE", "--workers=-2"], "--workers=-2: give at least 1"),
        (
            ["cache", "--format=text", "--output=a", "--max_bad_fraction=nan"],
            "argument --max_bad_fraction: nan is not a finite number",
        ),
    ],
)
def test_numbers_out_of_range_are_refused(stores: Path, command: list[str], message: str):
    with pytest.raises(UserError, match=message):
        data.main([str(stores / "web/train") if word == "STORE" else word for word in command])
