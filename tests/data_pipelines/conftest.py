"""Small stores and corpora, built without seqio."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import zstandard

from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import Encoded, write_index, write_shard

Document = tuple[Sequence[int], int]
MakeStore = Callable[..., TokenStore]


@pytest.fixture(scope="session")
def make_store(tmp_path_factory: pytest.TempPathFactory) -> MakeStore:
    """`make_store(shards)`; a shard is a list of documents, each (tokens, source id)."""

    def make(
        shards: Sequence[Sequence[Document]],
        vocab_size: int = 100,
        sources: Sequence[str] = ("a", "b"),
        layout: str = "mixed",
        eos_id: int = 2,
        tokenizer: str = "0",
    ) -> TokenStore:
        folder = tmp_path_factory.mktemp("store")
        entries = []
        for number, documents in enumerate(shards):
            arrays = (Encoded(np.array(t, np.int32), source) for t, source in documents)
            name = f"shard-{number:05d}"
            entries.append(
                write_shard(
                    folder,
                    name,
                    f"{number}.zst",
                    1,
                    arrays,
                    vocab_size,
                    len(sources),
                    by_set=layout == "by_set",
                )
            )
        write_index(
            folder,
            identity={"task": "t", "split": "train", "tokenizer_sha256": tokenizer, "inputs": []},
            vocab_size=vocab_size,
            eos_id=eos_id,
            sources=sources,
            shards=entries,
            layout=layout,
        )
        return TokenStore.open(folder)

    return make


@pytest.fixture(scope="session")
def counting_store(make_store: MakeStore) -> Callable[[int], TokenStore]:
    """`counting_store(n)`: tokens 0 … n-1, in documents of seven and shards of three documents.

    Tests share the stores, so they must not write to them.
    """

    @functools.cache
    def make(tokens: int) -> TokenStore:
        def shards() -> Iterator[list[Document]]:
            for first in range(0, tokens, 21):
                starts = range(first, min(first + 21, tokens), 7)
                yield [(range(s, min(s + 7, tokens)), s // 7 % 2) for s in starts]

        return make_store(list(shards()), vocab_size=max(tokens, 3))

    return make


@pytest.fixture
def write_rows() -> Callable[..., Path]:
    """`write_rows(path, [(text, set name), …])`: one `.jsonl.zst` file of a corpus."""

    def write(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
        lines = (
            json.dumps({"text": text, "meta": {"redpajama_set_name": name}}) for text, name in rows
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(zstandard.compress("".join(f"{line}\n" for line in lines).encode()))
        return path

    return write
