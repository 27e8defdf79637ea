import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.store.fields import INDEX_DIGEST, index_digest
from data_pipelines.store.index import fingerprint
from data_pipelines.store.store import TokenStore
from data_pipelines.store.verify import verify
from prts_jax.errors import UserError

SHARDS = [[([1, 2, 3], 0), ([4], 1)], [([5, 6], 1)], []]
MakeStore = Callable[..., TokenStore]


@pytest.fixture
def folder(make_store: MakeStore) -> Path:
    directory = Path(make_store(SHARDS).directory)
    (directory / "tokenizer.model").write_bytes(b"model")
    change_index(directory, tokenizer_sha256=hashlib.sha256(b"model").hexdigest())
    return directory


def change_index(folder: Path, **changes: object) -> None:
    """Changes the index so that it still matches its own fingerprint and digest."""
    index = json.loads((folder / "index.json").read_bytes()) | changes
    index["fingerprint"] = fingerprint(index)
    index[INDEX_DIGEST] = index_digest(index)
    (folder / "index.json").write_text(json.dumps(index))


def test_a_whole_store_passes_with_one_and_several_processes(folder: Path):
    for workers in (1, 2):
        assert verify(folder, workers)["tokens"] == 6


@pytest.mark.parametrize("name", ["shard-00000.tokens", "shard-00001.ends", "shard-00000.sources"])
def test_any_flipped_bit_is_found(folder: Path, name: str):
    whole = (folder / name).read_bytes()
    for position in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match=f"faults?, the first: {name} does not match"):
            verify(folder)
    (folder / name).write_bytes(whole)
    verify(folder)


def test_every_fault_is_reported(folder: Path):
    (folder / "shard-00000.tokens").write_bytes(b"")
    (folder / "shard-00001.ends").unlink()
    (folder / "tokenizer.model").write_bytes(b"another")
    actual: list[str] = []
    with pytest.raises(UserError, match="3 faults"):
        verify(folder, report=actual.append)
    assert actual == [
        "tokenizer.model is not the one that made the tokens",
        "shard-00000.tokens has 0 bytes, not 8",
        "shard-00001.ends is missing",
    ]


def test_wrong_counts_with_right_digests_are_found(folder: Path):
    index = json.loads((folder / "index.json").read_bytes())
    index["shards"][0]["tokens_per_source"] = [2, 1]
    change_index(folder, shards=index["shards"])
    with pytest.raises(UserError, match="counts 4 tokens of shard-00000, its sets 3"):
        verify(folder)
    index["shards"][0] |= {"tokens_per_source": [2, 2], "documents_per_source": [0, 2]}
    change_index(folder, shards=index["shards"])
    actual: list[str] = []
    with pytest.raises(UserError, match="2 faults"):
        verify(folder, report=actual.append)
    assert actual == [
        "shard-00000.sources gives [3, 1] tokens per source",
        "shard-00000.sources gives [1, 1] documents per source",
    ]


def test_a_missing_store_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="no finished token store"):
        verify(tmp_path)
