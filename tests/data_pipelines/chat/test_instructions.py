"""Instruction data into stores: which rows, which splits, which tokens, and what is refused."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.chat.instructions import open_instructions
from data_pipelines.chat.packing import Packing
from data_pipelines.chat.template import PLAIN
from data_pipelines.chat.turns import tokens_of, turns_of
from data_pipelines.store.index import PADDING
from data_pipelines.store.statistics import statistics
from data_pipelines.store.store import TokenStore
from data_pipelines.store.verify import verify
from data_pipelines.text.rows import Fault
from prts_jax.errors import UserError
from tests.instruction_data import (
    ANSWERS,
    EOS,
    TOKENIZER,
    encode,
    examples_of,
    make_store,
    many,
    write_lines,
)


def expected_of(row: dict[str, Any]) -> tuple[list[int], list[bool]]:
    turns = turns_of(row, 1)
    assert not isinstance(turns, Fault)
    tokens, answers = tokens_of(turns, encode, EOS)
    return tokens.tolist(), answers.astype(bool).tolist()


def test_every_row_is_an_example_with_its_answers(tmp_path: Path):
    rows = [*ANSWERS, *many(40)]
    store = make_store(tmp_path, rows, length=80)
    assert sorted(examples_of(store)) == sorted(expected_of(row) for row in rows)
    assert store.packed == 80
    assert store.tokens % 81 == 0
    assert verify(store.directory)["packing"]["template"] == vars(PLAIN)


def test_the_same_rows_make_the_same_bytes(tmp_path: Path):
    one, other = (make_store(tmp_path / name, many(40), length=80) for name in "ab")
    reseeded = make_store(tmp_path / "c", many(40), length=80, seed=1)
    assert one.fingerprint == other.fingerprint != reseeded.fingerprint
    for suffix in ("tokens", "ends", "sources", "answers"):
        file = f"shard-00000.{suffix}"
        assert Path(one.directory, file).read_bytes() == Path(other.directory, file).read_bytes()


def test_too_long_examples_are_truncated_or_refused(tmp_path: Path):
    rows = [ANSWERS[0], {"instruction": "why", "output": "red " * 30}]
    cut = make_store(tmp_path / "cut", rows, length=15)
    tokens, answers = expected_of(rows[1])
    assert (tokens[:16], answers[:16]) in examples_of(cut)
    packed = statistics(cut.directory).packed
    assert packed is not None
    assert (packed.examples, packed.truncated, packed.rows) == (2, 1, 2)
    with pytest.raises(UserError, match=r"too_long: .*rows\.jsonl, line 2: .*\(38 tokens; a row"):
        make_store(tmp_path / "refused", rows, length=15, too_long="refuse")
    # Nothing of the answer would be left of it.
    with pytest.raises(UserError, match="too_long"):
        make_store(tmp_path / "no answer", rows[1:], length=6)


def test_statistics_count_answers_and_padding(tmp_path: Path):
    store = make_store(tmp_path, many(40), length=80)
    actual = statistics(store.directory)
    assert actual.packed is not None
    rows = [expected_of(row) for row in many(40)]
    assert actual.packed.examples == 40
    assert actual.packed.answers == sum(sum(answers) for _, answers in rows)
    assert actual.packed.padding == store.tokens - sum(len(tokens) for tokens, _ in rows)
    assert actual.as_json()["packed"]["rows"] == store.tokens // 81
    assert "40 examples in" in actual.table()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_lines(tmp_path / "input/train/chat/a.jsonl", many(8))
    write_lines(tmp_path / "input/train/b.jsonl", many(8, seed=1))
    write_lines(tmp_path / "input/validation/chat/c.jsonl", many(8, seed=2))
    return tmp_path / "input"


def test_a_folder_has_splits_and_sets(folder: Path):
    tasks = open_instructions(folder, TOKENIZER, encode, Packing(80))
    assert list(tasks) == ["train", "validation"]
    for task in tasks.values():
        assert task.sources == ("chat", "instructions", PADDING)
    assert tasks["train"].file_sets == ("instructions", "chat")
    with pytest.raises(UserError, match="--held_out: .*splits of its own"):
        open_instructions(folder, TOKENIZER, encode, Packing(80, held_out=0.5))
    with pytest.raises(UserError, match="no instructions found"):
        open_instructions(folder / "validation/nothing", TOKENIZER, encode, Packing(80))


def test_a_rows_bytes_decide_whether_it_is_held_out(tmp_path: Path):
    rows = many(200)
    file = write_lines(tmp_path / "rows.jsonl", rows)
    tasks = open_instructions(file, TOKENIZER, encode, Packing(200, held_out=0.25))
    actual = {
        split: [document.tokens.tolist() for document in task.documents(0)]  # type: ignore[union-attr]
        for split, task in tasks.items()
    }
    held = [
        int(hashlib.sha256(json.dumps(row).encode()).hexdigest()[:16], 16) < 0.25 * 2**64
        for row in rows
    ]
    assert 30 < sum(held) < 70
    for split, wanted in (("train", False), ("validation", True)):
        expected = [expected_of(row)[0] for row, is_held in zip(rows, held, strict=True)]
        chosen = [tokens for tokens, h in zip(expected, held, strict=True) if h is wanted]
        assert actual[split] == chosen


def test_bad_rows_fail_or_are_counted(tmp_path: Path):
    rows = [*many(6), {"instruction": "why", "output": ""}, {"messages": [{"role": "tool"}]}]
    file = write_lines(tmp_path / "rows.jsonl", rows)
    packing = Packing(80)
    task = open_instructions(file, TOKENIZER, encode, packing)["train"]

    def make(**rules: Any) -> TokenStore:
        return cache(task, tmp_path / "store", lambda line: None, Rules(packing=packing, **rules))

    with pytest.raises(UserError, match=r"no_answer: .*rows\.jsonl, line 7: .*--on_error=skip"):
        make()
    with pytest.raises(UserError, match="2 of 8 rows, more than"):
        make(skip_bad=True)
    store = make(skip_bad=True, max_bad_fraction=0.5)
    index = verify(store.directory)
    assert index["bad"] == {"bad_turn": 1, "no_answer": 1}
    assert index["shards"][0]["bad"] == {"no_answer": [7], "bad_turn": [8]}
    assert statistics(store.directory).packed.left_out == 2  # type: ignore[union-attr]


def test_another_packing_is_another_store(tmp_path: Path):
    make_store(tmp_path, many(8), length=80)
    with pytest.raises(UserError, match="another store is in the way: .* differs in packing"):
        make_store(tmp_path, many(8), length=60)


@pytest.mark.parametrize("suffix", ["answers", "tokens"])
def test_damage_is_found(tmp_path: Path, suffix: str):
    store = make_store(tmp_path, many(8), length=80)
    file = Path(store.directory, f"shard-00000.{suffix}")
    content = bytearray(file.read_bytes())
    content[3] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=rf"{suffix} does not match its digest"):
        verify(store.directory)
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=rf"shard-00000\.{suffix} has"):
        TokenStore.open(store.directory)
