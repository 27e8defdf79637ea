import struct
from pathlib import Path

import numpy as np
import pytest

from data_pipelines.build.cache import cache
from data_pipelines.store.store import TokenStore
from data_pipelines.text.litgpt_bin import open_litgpt, read_tokens
from data_pipelines.text.sources import EMBEDDED_SHAKESPEARE
from prts_jax.cli import data
from prts_jax.errors import UserError

TOKENIZER = EMBEDDED_SHAKESPEARE / "tokenizer.model"
BOS = 1


def packed(path: Path, tokens: list[int], code: int = 8, dtype: str = "<u2") -> Path:
    """Written as the format is described, by hand."""
    header = b"LITPKDS" + struct.pack("<Q", 1) + struct.pack("<B", code)
    path.write_bytes(header + struct.pack("<Q", len(tokens)) + np.array(tokens, dtype).tobytes())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    directory = tmp_path / "bins"
    directory.mkdir()
    packed(directory / "train_0000.bin", [BOS, 5, 6, BOS, 7, 8])
    packed(directory / "train_0001.bin", [9, BOS, 10, BOS, BOS, BOS])
    packed(directory / "train_0002.bin", [BOS, BOS])
    return directory


def test_documents_begin_at_the_begin_of_text_id_without_padding(folder: Path, tmp_path: Path):
    task = open_litgpt(folder, "train", TOKENIZER)
    actual = [[d.tokens.tolist() for d in task.documents(index)] for index in range(3)]
    assert actual == [[[BOS, 5, 6], [BOS, 7, 8]], [[9], [BOS, 10]], []]
    stores = [
        cache(task, tmp_path / f"store{workers}", lambda line: None, workers=workers)
        for workers in (1, 2)
    ]
    assert stores[0].read(0, 9).tolist() == [BOS, 5, 6, BOS, 7, 8, 9, BOS, 10]
    assert (stores[0].tokens, stores[0].documents) == (9, 4)
    assert stores[0].fingerprint == stores[1].fingerprint


def test_one_begin_id_at_the_end_begins_a_document(tmp_path: Path):
    packed(tmp_path / "a_0.bin", [BOS, 5, BOS])
    packed(tmp_path / "a_1.bin", [6, BOS, 7, BOS, BOS])
    task = open_litgpt(tmp_path, "train", TOKENIZER)
    actual = [[d.tokens.tolist() for d in task.documents(index)] for index in range(2)]
    assert actual == [[[BOS, 5], [BOS]], [[6], [BOS, 7]]]


def test_a_split_is_the_files_that_it_names(tmp_path: Path):
    packed(tmp_path / "train_slim_0.bin", [BOS, 5])
    packed(tmp_path / "validation_slim_0.bin", [BOS, 6])
    for split, token in (("train", 5), ("validation", 6)):
        task = open_litgpt(tmp_path, split, TOKENIZER)
        [document] = task.documents(0)
        assert document.tokens.tolist() == [BOS, token]
    packed(tmp_path / "arxiv_0.bin", [BOS, 7])
    with pytest.raises(UserError, match=r"arxiv_0\.bin names no split"):
        open_litgpt(tmp_path, "train", TOKENIZER)


def test_every_integer_dtype_is_read(tmp_path: Path):
    for code, dtype in ((1, "u1"), (3, "<i2"), (4, "<i4"), (5, "<i8"), (8, "<u2")):
        assert read_tokens(packed(tmp_path / "a.bin", [3, 1, 99], code, dtype)).tolist() == [
            3,
            1,
            99,
        ]


def test_other_files_are_refused(tmp_path: Path):
    whole = packed(tmp_path / "a.bin", [1, 2, 3]).read_bytes()
    for content, message in (
        (whole[:-1], "truncated file: .* has 29 bytes, not 30"),
        (whole[:10], "not a packed file"),
        (b"", "not a packed file"),
        (b"X" + whole[1:], "not a packed file"),
        (whole[:7] + b"\2" + whole[8:], "not a packed file"),
        (whole[:15] + b"\6" + whole[16:], "not a packed file"),
    ):
        (tmp_path / "b.bin").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_tokens(tmp_path / "b.bin")
    with pytest.raises(UserError, match=r"cannot read .*none\.bin"):
        read_tokens(tmp_path / "none.bin")
    with pytest.raises(UserError, match=r"no \.bin file"):
        open_litgpt(tmp_path / "nowhere", "train", TOKENIZER)


def test_the_command_makes_a_store(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "store"
    data.main(["import", f"--input={folder}", f"--tokenizer={TOKENIZER}", f"--output={output}"])
    assert capsys.readouterr().out == f"{output}: 9 tokens of 4 documents\n"
    assert TokenStore.open(output).sources == ("litgpt",)


def test_ids_of_another_tokenizer_are_refused(folder: Path, tmp_path: Path):
    packed(folder / "train_0003.bin", [BOS, 1024])
    with pytest.raises(UserError, match="token id out of range: train_0003.bin"):
        cache(open_litgpt(folder, "train", TOKENIZER), tmp_path / "store", lambda line: None)
