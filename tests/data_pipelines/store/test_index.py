"""A store's index: its counts, its fingerprint, and the refusal of damaged stores."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError

MakeStore = Callable[..., TokenStore]


def test_the_index_counts_tokens_and_documents(make_store: MakeStore):
    store = make_store([[([1, 2], 0), ([3], 1)], [([4, 5], 1)]], sources=("verse", "prose"))
    assert store.sources == ("verse", "prose")
    assert (store.vocab_size, store.eos_id) == (100, 2)
    index = json.loads((Path(store.directory) / "index.json").read_bytes())
    assert [shard["tokens_per_source"] for shard in index["shards"]] == [[2, 1], [0, 2]]
    assert [shard["documents"] for shard in index["shards"]] == [2, 1]


def test_the_fingerprint_depends_on_the_content_alone(make_store: MakeStore):
    contents = [[([1, 2], 0), ([3], 1)], [([4], 0)]]
    same = make_store(contents).fingerprint
    assert make_store(contents).fingerprint == same
    others = [
        make_store([[([1, 2], 0), ([3], 1)], [([5], 0)]]),  # a token
        make_store([[([1], 0), ([2, 3], 1)], [([4], 0)]]),  # a document's end
        make_store([[([1, 2], 0), ([3], 0)], [([4], 0)]]),  # a source
        make_store(contents, sources=("a", "c")),
        make_store(contents, vocab_size=101),
    ]
    assert len({same, *(store.fingerprint for store in others)}) == 6


def test_a_damaged_store_is_refused(make_store: MakeStore, tmp_path: Path):
    with pytest.raises(UserError, match="no finished token store"):
        TokenStore.open(tmp_path)

    def damaged(name: str, content: bytes | None) -> Path:
        folder = Path(make_store([[([1, 2], 0)]]).directory)
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)
        return folder

    with pytest.raises(UserError, match=r"shard-00000\.tokens has 3 bytes, not 4"):
        TokenStore.open(damaged("shard-00000.tokens", b"abc"))
    with pytest.raises(UserError, match=r"shard-00000\.sources is missing"):
        TokenStore.open(damaged("shard-00000.sources", None))
    with pytest.raises(UserError, match="damaged index"):
        TokenStore.open(damaged("index.json", b'{"format": 1'))
    with pytest.raises(UserError, match="damaged index"):
        TokenStore.open(damaged("index.json", b'{"format": 1}'))
    with pytest.raises(UserError, match="format 2"):
        TokenStore.open(damaged("index.json", b'{"format": 2}'))


def test_an_index_changed_by_hand_is_refused(make_store: MakeStore):
    folder = Path(make_store([[([1, 2], 0)]]).directory)
    index = json.loads((folder / "index.json").read_bytes())
    index["eos_id"] = 7
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="does not match its fingerprint"):
        TokenStore.open(folder)

    folder = Path(make_store([[([1, 2], 0)]]).directory)
    index = json.loads((folder / "index.json").read_bytes())
    index["shards"][0]["tokens_per_source"] = [0, 1]
    (folder / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="counts 2 tokens of shard-00000, its sets 1"):
        TokenStore.open(folder)
