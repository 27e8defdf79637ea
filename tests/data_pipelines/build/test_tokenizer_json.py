"""Stores of a tokenizer.json: the same bytes however they are built, and 32-bit ids."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from data_pipelines.build.cache import cache
from data_pipelines.store.verify import verify
from data_pipelines.text.folders import Format, open_folder
from data_pipelines.text.native import NativeTask
from prts_jax.errors import UserError
from tests.data_pipelines.build.line_task import contents, silent
from tests.data_pipelines.text.hf_tokenizers import END, TURN, save, small

TEXTS = [
    ["the king's men", f"a text that says {END} and {TURN}", "nul \0 and é"],
    ["中文 " * 3000, " ", "x" * 40_000],
    ["last"] * 2500,
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of JSON lines with a tokenizer in `tokenizer/`."""
    for number, texts in enumerate(TEXTS):
        file = tmp_path / "input" / "train" / f"{number}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    save(small(), tmp_path / "tokenizer", eos_token=TURN)
    return tmp_path


def task(folder: Path, end_id: str = "") -> NativeTask:
    return open_folder(folder / "input", "train", Format("jsonl"), folder / "tokenizer", end_id)


def test_documents_are_the_librarys_ids_and_the_end_id(folder: Path):
    store = cache(task(folder), folder / "store", silent)
    tokenizer = small()
    # Without the pass over special tokens, their texts are cut like any other.
    tokenizer.encode_special_tokens = True
    expected = [
        token
        for texts in TEXTS
        for one in tokenizer.encode_batch(texts, add_special_tokens=False)
        for token in (*one.ids, tokenizer.token_to_id(TURN))
    ]
    assert store.read(0, store.tokens).tolist() == expected
    assert store.eos_id == tokenizer.token_to_id(TURN)
    assert store.vocab_size == tokenizer.get_vocab_size()
    carried = {"tokenizer.json", "tokenizer_config.json"}
    assert carried <= contents(folder / "store").keys()
    verify(folder / "store")


def test_every_number_of_workers_and_every_restart_make_the_same_bytes(folder: Path):
    cache(task(folder), folder / "one", silent)
    cache(task(folder), folder / "three", silent, workers=3)
    assert contents(folder / "one") == contents(folder / "three")
    second = folder / "input/train/1.jsonl"
    text = second.read_text()
    second.write_text("not JSON\n")
    with pytest.raises(UserError, match="bad_json"):
        cache(task(folder), folder / "stopped", silent)
    second.write_text(text)
    cache(task(folder), folder / "stopped", silent)
    assert contents(folder / "one") == contents(folder / "stopped")


def test_another_end_id_is_another_store(folder: Path):
    cache(task(folder), folder / "store", silent)
    with pytest.raises(UserError, match="differs in eos_id"):
        cache(task(folder, END), folder / "store", silent)
    (folder / "store" / "index.json").rename(folder / "store" / "plan.json")
    with pytest.raises(UserError, match="differs in eos_id"):
        cache(task(folder, END), folder / "store", silent)


def test_ids_beyond_65535_are_stored_in_four_bytes(folder: Path):
    vocab = {f"w{at}": at for at in range(1, 100_000)} | {END: 0}
    words = Tokenizer(models.WordLevel(vocab))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    shutil.rmtree(folder / "input")
    save(words, folder / "tokenizer", eos_token=END)
    (folder / "input/train").mkdir(parents=True)
    (folder / "input/train/0.jsonl").write_text(json.dumps({"text": "w7 w65536 w99999"}) + "\n")
    store = cache(task(folder), folder / "store", silent)
    raw = np.fromfile(folder / "store" / "shard-00000.tokens", "<u4")
    assert raw.tolist() == store.read(0, store.tokens).tolist() == [7, 65536, 99999, 0]
    assert store.vocab_size == 100_000
    verify(folder / "store")
