from pathlib import Path

import pytest

from data_pipelines.text.sources import list_files
from prts_jax.errors import UserError


def test_files_are_in_numeric_order(tmp_path: Path):
    for chunk, number in ((10, 0), (2, 11), (2, 9), (1, 3)):
        file = tmp_path / "train" / f"chunk{chunk}" / f"example_train_{number}.jsonl.zst"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (tmp_path / "train" / "chunk1" / "notes.txt").touch()
    names = [
        str(Path(file).relative_to(tmp_path / "train")) for file in list_files(tmp_path, "train")
    ]
    assert names == [
        "chunk1/example_train_3.jsonl.zst",
        "chunk2/example_train_9.jsonl.zst",
        "chunk2/example_train_11.jsonl.zst",
        "chunk10/example_train_0.jsonl.zst",
    ]


def test_a_folder_without_text_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no text found"):
        list_files(tmp_path, "train")
    with pytest.raises(UserError, match="no split 'dev'"):
        list_files(tmp_path, "dev")
