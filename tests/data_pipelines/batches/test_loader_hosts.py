"""Any number of hosts sees one global batch, and epochs are whole whoever read which part."""

import hashlib
import os
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.batches.loader import EvalBatches, TrainBatches
from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.checksums import BLOCK, Digests
from data_pipelines.store.fields import INDEX_DIGEST, index_digest
from data_pipelines.store.index import fingerprint, read_index
from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import write_json

MakeStore = Callable[..., TokenStore]
Batch = dict[str, np.ndarray]
shared_fixture = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=6
)

LENGTH, BATCH = 4, 8
KINDS = {
    "windows": {"mixture": ""},
    "disjoint": {"mixture": "", "overlap": False},
    "blocks": {"mixture": "", "block": 12},
    "one set": {"mixture": "b"},
    "shares": {"mixture": "a=1,b=2"},
    "shares in blocks": {"mixture": "a=1,b=2", "block": 8},
    "documents": {"mixture": "", "documents": True},
}


@pytest.fixture
def store(make_store: MakeStore) -> TokenStore:
    """Seven shards of two sets, one after the other in each; no token is there twice."""
    numbers = iter(range(1000))
    shards = [
        [([next(numbers) for _ in range(2 + (i * i + j) % 9)], i % 2) for i in range(6)]
        for j in range(7)
    ]
    return make_store(shards, vocab_size=1000, layout="by_set")


def reader(directory: str, kind: str) -> TrainBatches:
    return train_batches(
        TokenStore.open(directory), ReadOrder(LENGTH, BATCH, seed=7, **KINDS[kind])
    )


def read_by(hosts: list[TrainBatches] | list[EvalBatches], step: int) -> Batch:
    """The global batch, of which every host reads an equal part."""
    share = BATCH // len(hosts)
    parts = [host.rows(step, i * share, (i + 1) * share) for i, host in enumerate(hosts)]
    for part in parts:
        assert {array.shape for array in part.values()} == {(share, LENGTH)}
    return {name: np.concatenate([part[name] for part in parts]) for name in hosts[0].fields}


def assert_same(actual: Batch, expected: Batch) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
@given(steps=st.lists(st.integers(0, 10**7), min_size=1, max_size=4))
@shared_fixture
def test_one_two_and_four_hosts_read_the_same_batch_at_any_step(
    store: TokenStore, kind: str, steps: list[int]
):
    # Every host opens the store for itself, and nothing of it remembers where it has read before.
    four = [reader(store.directory, kind) for _ in range(4)]
    for step in steps:
        position = step * BATCH * LENGTH
        expected = reader(store.directory, kind).rows(position, 0, BATCH)
        for count in (1, 2, 4):
            assert_same(read_by(four[:count], position), expected)


@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_hosts_read_the_same_evaluation_batch(store: TokenStore, hosts: int):
    one = EvalBatches(store, LENGTH, BATCH, documents=True)
    several = [
        EvalBatches(TokenStore.open(store.directory), LENGTH, BATCH, documents=True)
        for _ in range(hosts)
    ]
    for index in range(len(one)):
        assert_same(read_by(several, index), one.rows(index, 0, BATCH))


def windows_of_an_epoch(store: TokenStore, kind: str) -> list[set[int]]:
    """First tokens of all windows; shares give each set an epoch of its own."""
    rest = {key: value for key, value in KINDS[kind].items() if key != "mixture"}
    mixture = str(KINDS[kind]["mixture"])
    windows = []
    for one in ("a", "b") if "=" in mixture else (mixture,):
        in_order = train_batches(
            store, ReadOrder(LENGTH, 1, seed=0, shuffle=False, **rest, mixture=one)
        )
        rows = [in_order.rows(i * LENGTH, 0, 1) for i in range(in_order.windows_per_epoch)]
        windows.append({int(row["tokens"][0, 0]) for row in rows})
        assert len(windows[-1]) == len(rows)
    return windows


@pytest.mark.parametrize("kind", KINDS)
@given(hosts=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=24, max_size=24))
@shared_fixture
def test_epochs_stay_whole_when_the_number_of_hosts_changes_every_step(
    store: TokenStore, kind: str, hosts: list[int]
):
    read = []
    for step, count in enumerate(hosts):
        started = [reader(store.directory, kind) for _ in range(count)]
        read.append(read_by(started, step * BATCH * LENGTH)["tokens"])
    firsts = np.concatenate(read)[:, 0].tolist()
    for windows in windows_of_an_epoch(store, kind):
        mine = [first for first in firsts if first in windows]
        assert len(mine) >= 2 * len(windows)
        for begin in range(0, len(mine) - len(windows) + 1, len(windows)):
            assert set(mine[begin : begin + len(windows)]) == windows


@pytest.fixture
def enormous(make_store: MakeStore) -> TokenStore:
    """Four billion tokens, all 0, in 2,000 documents: a file of 8 GB that is one hole."""
    tokens = 4 * 10**9
    store = make_store([[([0], 0)]], vocab_size=1000)
    folder = Path(store.directory)
    os.truncate(folder / "shard-00000.tokens", 2 * tokens)
    (np.arange(1, 2001, dtype="<u8") * (tokens // 2000)).tofile(folder / "shard-00000.ends")
    (np.arange(2000) % 2).astype("u1").tofile(folder / "shard-00000.sources")
    index = read_index(folder)
    index["shards"][0] |= {
        "tokens": tokens,
        "documents": 2000,
        "tokens_per_source": [tokens // 2, tokens // 2],
        "documents_per_source": [1000, 1000],
    }
    index |= {"tokens": tokens, "documents": 2000}
    hole = np.full(2 * tokens // BLOCK, zlib.crc32(bytes(BLOCK)), "<u4").tobytes()
    crcs = [hole]
    for content in (
        bytes(2 * tokens % BLOCK),
        (folder / "shard-00000.ends").read_bytes(),
        (folder / "shard-00000.sources").read_bytes(),
    ):
        digests = Digests()
        digests.update(content)
        crcs.append(digests.crcs)
    (folder / "checksums").write_bytes(b"".join(crcs))
    index["checksums"]["sha256"] = hashlib.sha256(b"".join(crcs)).hexdigest()
    index["fingerprint"] = fingerprint(index)
    write_json(folder / "index.json", {**index, INDEX_DIGEST: index_digest(index)})
    return TokenStore.open(folder)


@pytest.mark.parametrize("block", [0, 4096])
def test_time_does_not_grow_with_the_step(enormous: TokenStore, block: int):
    batches = TrainBatches(enormous, ReadOrder(256, 64, seed=0, block=block, documents=True))

    def seconds(first: int) -> float:
        """The least CPU time of a batch among several, which other work changes little."""
        times = []
        for step in range(first, first + 9):
            begin = time.process_time()
            batches.rows(step * 64 * 256, 0, 64)
            times.append(time.process_time() - begin)
        return min(times)

    assert seconds(10**7) < 3 * seconds(0)


@pytest.mark.parametrize("block", [0, 4096])
def test_memory_does_not_grow_with_the_store(
    enormous: TokenStore, make_store: MakeStore, block: int
):
    def peak_bytes(store: TokenStore) -> int:
        batches = TrainBatches(store, ReadOrder(256, 64, seed=0, block=block, documents=True))
        tracemalloc.start()
        batches.rows(10**7 * 64 * 256, 0, 64)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    small = make_store([[([0] * 500, 0)] * 60])
    assert peak_bytes(enormous) < 1.5 * peak_bytes(small) + 2**20
