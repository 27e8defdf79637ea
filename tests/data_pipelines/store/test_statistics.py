import json
from collections.abc import Callable
from pathlib import Path

from data_pipelines.store.fields import INDEX_DIGEST, index_digest
from data_pipelines.store.statistics import BINS_PER_OCTAVE, statistics
from data_pipelines.store.store import TokenStore

MakeStore = Callable[..., TokenStore]


def store_with_bytes(make_store: MakeStore) -> Path:
    store = make_store([[([1] * 8, 0), ([2], 1)], [([3] * 9, 1), ([], 0)]], layout="by_set")
    path = Path(store.directory) / "index.json"
    index = json.loads(path.read_bytes())
    index["shards"][0]["bytes_per_source"] = [20, 3]
    index["shards"][1]["bytes_per_source"] = [0, 27]
    index["shards"][0] |= {"rows": 5, "bad": {"empty_text": [3]}}
    index |= {"rows": 5, "bad": {"empty_text": 1}}
    path.write_text(json.dumps(index | {INDEX_DIGEST: index_digest(index)}))
    return Path(store.directory)


def test_counts_by_set_and_in_total(make_store: MakeStore):
    counts = statistics(store_with_bytes(make_store))
    assert counts.as_json() == {
        "sets": {
            "a": {"tokens": 8, "documents": 2, "bytes": 20, "bytes_per_token": 2.5},
            "b": {"tokens": 10, "documents": 2, "bytes": 30, "bytes_per_token": 3.0},
        },
        "total": {"tokens": 18, "documents": 4, "bytes": 50, "bytes_per_token": 50 / 18},
        "rows": 5,
        "bad": {"empty_text": 1},
    }
    assert counts.table().splitlines()[1].split() == ["a", "8", "44.44%", "2", "20", "2.500"]


def test_lengths_fall_into_bins_of_half_an_octave(make_store: MakeStore):
    lengths = statistics(store_with_bytes(make_store)).lengths
    actual = {(s, i): int(n) for s, row in enumerate(lengths) for i, n in enumerate(row) if n}
    eight = 3 * BINS_PER_OCTAVE
    assert actual == {(0, eight): 1, (0, 0): 1, (1, 0): 1, (1, eight): 1}


def test_unknown_text_sizes_are_shown_as_missing(make_store: MakeStore):
    counts = statistics(make_store([[([1, 2], 0)]]).directory)
    assert counts.as_json()["total"]["bytes"] is None
    assert counts.table().splitlines()[-1].split() == ["total", "2", "100.00%", "1", "–", "–"]
