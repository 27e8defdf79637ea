"""Instruction data and a tokenizer of words, small enough to check by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipelines.batches.order import ReadOrder
from data_pipelines.build.cache import cache
from data_pipelines.build.rules import Rules
from data_pipelines.chat.instructions import open_instructions
from data_pipelines.chat.packing import Packing
from data_pipelines.store.index import PADDING
from data_pipelines.store.store import TokenStore
from data_pipelines.text.tokenizer import Tokenizer

SPECIAL = ["</s>", "<unk>"]
MARKS = ["###", "System", ":", "Instruction", "Response"]
SAID = ["red", "blue", "green", "one", "two", "three", "why", "because"]
WORDS = [*SPECIAL, *MARKS, *SAID]
EOS = 0

ANSWERS: list[dict[str, Any]] = [
    {"instruction": "why red", "input": "", "output": "because blue"},
    {"instruction": "why", "input": "one two", "output": "three"},
    {
        "messages": [
            {"role": "system", "content": "green green"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "two"},
            {"role": "assistant", "content": "three three three"},
        ]
    },
    {"messages": [{"role": "user", "content": "red"}, {"role": "assistant", "content": "red"}]},
]


def encode(text: str) -> list[int]:
    """One token a word, `###` and the colon words of their own."""
    words = text.replace(":", " : ").split()
    return [WORDS.index(word) if word in WORDS else 1 for word in words]


TOKENIZER = Tokenizer(
    model=b"words",
    sha256="dba36bffa5cab0f922d087a3aeb179f9d4e745df40b323e1b1471402848c8a3e",
    vocab_size=len(WORDS),
    eos_id=EOS,
)


def many(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Rows of both kinds with between one and nine words to say and to answer."""
    random = np.random.default_rng(seed)

    def words() -> str:
        return " ".join(random.choice(SAID, random.integers(1, 10)))

    rows: list[dict[str, Any]] = []
    for number in range(count):
        if number % 2:
            rows.append({"instruction": words(), "input": words(), "output": words()})
        else:
            turns = [("user", words()), ("assistant", words())] * (1 + number % 3)
            rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return rows


def write_lines(file: Path, rows: Sequence[Any]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def make_store(
    folder: Path,
    rows: Sequence[Any],
    length: int = 24,
    tokenizer: Tokenizer = TOKENIZER,
    **options: Any,
) -> TokenStore:
    """The packed store of rows, `folder`/store; options are `Packing`'s."""
    packing = Packing(length, **options)
    file = write_lines(folder / "rows.jsonl", rows)
    task = open_instructions(file, tokenizer, encode, packing)["train"]
    return cache(task, folder / "store", lambda line: None, Rules(packing=packing))


def packed_order(length: int, batch: int, seed: int = 0, **changes: Any) -> ReadOrder:
    """Returns the read order of a packed store."""
    packed = {"overlap": False, "documents": True, "instructions": True}
    return ReadOrder(length, batch, seed, **packed | changes)


def examples_of(store: TokenStore) -> list[tuple[list[int], list[bool]]]:
    """The tokens and answers of every document of a store that is no padding."""
    tokens, sources = store.read(0, store.tokens), store.source_ids(0, store.tokens)
    answers = store.read_answers([(0, store.tokens)])[0]
    begins = [int(at) for at in (store.document_offsets(0, store.tokens) == 0).nonzero()[0]]
    ends = [*begins[1:], store.tokens]
    return [
        (tokens[begin:end].tolist(), answers[begin:end].tolist())
        for begin, end in zip(begins, ends, strict=True)
        if store.sources[sources[begin]] != PADDING
    ]
