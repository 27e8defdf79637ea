"""Damaged stores: no flipped bit reaches a batch, and the message names the file and the bytes."""

import contextlib
import itertools
import json
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store import checksums
from data_pipelines.store.checksums import BLOCK, Digests
from data_pipelines.store.index import fingerprint, read_index
from data_pipelines.store.statistics import statistics
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError
from tests.gcs import fake_gcs, gcs_server  # noqa: F401 (fixtures)

MakeStore = Callable[..., TokenStore]
TOKENS = 40_000  # 80,000 bytes: two whole blocks and a part


@pytest.fixture
def folder(make_store: MakeStore) -> Path:
    documents = [(range(start, start + 100), start % 2) for start in range(0, TOKENS, 100)]
    return Path(make_store([documents], vocab_size=TOKENS).directory)


def without_checksums(folder: Path) -> None:
    """Turns a store into one of an older version, which has digests of whole files alone."""
    index = json.loads((folder / "index.json").read_bytes())
    del index["checksums"], index["index_sha256"]
    (folder / "index.json").write_text(json.dumps(index))
    (folder / "checksums").unlink()


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)


def test_digests_do_not_depend_on_the_pieces():
    content = np.arange(50_000, dtype=np.uint16).tobytes()
    for size in (1, BLOCK - 1, BLOCK, 3 * BLOCK, len(content)):
        digests = Digests()
        for start in range(0, len(content), size):
            digests.update(content[start : start + size])
        expected = [zlib.crc32(content[s : s + BLOCK]) for s in range(0, len(content), BLOCK)]
        assert np.frombuffer(digests.crcs, "<u4").tolist() == expected


@pytest.mark.parametrize("position", [0, BLOCK - 1, BLOCK, 2 * TOKENS - 1])
def test_a_flipped_bit_of_tokens_is_refused_where_it_is_read(folder: Path, position: int):
    flip(folder / "shard-00000.tokens", position)
    first = position // BLOCK * BLOCK
    where = f"between bytes {first:,} and {min(first + BLOCK, 2 * TOKENS):,}"
    for start in range(0, TOKENS, 50):
        store = TokenStore.open(folder)
        if start * 2 // BLOCK <= position // BLOCK <= (start * 2 + 99) // BLOCK:
            with pytest.raises(UserError, match=rf"shard-00000\.tokens does not match .*{where}"):
                store.read(start, 50)
        else:
            np.testing.assert_array_equal(store.read(start, 50), np.arange(start, start + 50))


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("suffix", ["ends", "sources"])
def test_flipped_ends_and_sources_are_refused(folder: Path, suffix: str, old: bool):
    if old:
        without_checksums(folder)
    flip(folder / f"shard-00000.{suffix}", 300)
    batches = TrainBatches(TokenStore.open(folder), ReadOrder(10, 4, documents=True))
    with pytest.raises(UserError, match=rf"shard-00000\.{suffix} .*does not match its"):
        batches.rows(0, 0, 4)
    with pytest.raises(UserError, match=rf"shard-00000\.{suffix} .*does not match its"):
        statistics(folder)


def test_damaged_checksums_are_refused(folder: Path):
    flip(folder / "checksums", 1)
    with pytest.raises(UserError, match="checksums does not match its digest"):
        TokenStore.open(folder)


def test_an_older_store_is_compared_with_its_digests(folder: Path, monkeypatch: pytest.MonkeyPatch):
    content = TokenStore.open(folder).fingerprint
    without_checksums(folder)
    store = TokenStore.open(folder)
    assert store.fingerprint == content
    np.testing.assert_array_equal(store.read(5, 9), np.arange(5, 14))

    flip(folder / "shard-00000.tokens", 70_000)
    with pytest.raises(UserError, match=r"shard-00000\.tokens .*does not match its digest"):
        TokenStore.open(folder).read(5, 9)  # a small store is compared before the first read

    monkeypatch.setattr(checksums, "SMALL", 0)
    store = TokenStore.open(folder)
    reads = iter(lambda: (store.read(5, 9), time.sleep(0.02)), None)
    # A large one is compared by a thread, after the first read.
    with pytest.raises(UserError, match=r"shard-00000\.tokens .*does not match its digest"):
        list(itertools.islice(reads, 500))


def test_blocks_on_gs_are_compared(folder: Path, fake_gcs: str):  # noqa: F811
    flip(folder / "shard-00000.tokens", 40_000)
    fsspec.filesystem("gs").put(str(folder), fake_gcs, recursive=True)
    store = TokenStore.open(fake_gcs)
    np.testing.assert_array_equal(store.read(0, 16_384), np.arange(16_384))
    with pytest.raises(UserError, match="gs://.*between bytes 32,768 and 65,536"):
        store.read(16_384, 1)


def test_every_flipped_bit_of_an_index_is_refused(make_store: MakeStore):
    file = Path(make_store([[([1, 2], 0), ([3], 1)]], layout="by_set").directory) / "index.json"
    whole = file.read_bytes()
    meaning = read_index(file.parent)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert read_index(file.parent) == meaning  # white space, or 1e1 for 10
        except UserError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("tokens", -3, "tokens is -3, not a whole number of at least 0"),
        ("tokens", 3.0, "tokens is 3.0, not a whole number"),
        ("eos_id", True, "eos_id is True"),
        ("eos_id", 100, "has eos_id 100, which is not below vocab_size 100"),
        ("sources", ["a", "a"], "has 2 sources, not 1 to 256 with different names"),
        ("sources", "ab", "sources is 'ab', not a list"),
        ("layout", "by set", "layout is 'by set', not one of mixed, by_set"),
        ("packing", {"length": 0}, "packing.length is 0"),
        ("packing", [], r"packing is \[\], not an object"),
        ("rows", 7, "counts 7 rows, its shards 0"),
        ("bad", {"json": 2}, "counts bad rows"),
        ("truncated", 1, "counts 1 truncated, its shards 0"),
        ("shards", [7], r"shards\[0\] is 7, not an object"),
        ("kayout", "by_set", "'kayout' is an unknown field"),
        ("format", [[1]], r"format \[\[1\]\]"),
    ],
)
def test_a_wrong_field_is_named(make_store: MakeStore, key: str, value: object, words: str):
    folder = Path(make_store([[([1, 2], 0), ([3], 1)]]).directory)
    without_checksums(folder)
    change(folder, lambda index: index.update({key: value}))
    with pytest.raises(UserError, match=words):
        read_index(folder)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("name", "../../etc", r"shards\[0\].name is '../../etc', not the name of a shard"),
        ("tokens_per_source", [4, -1], r"tokens_per_source\[1\] is -1"),
        ("tokens_per_source", [3], "has 1 tokens_per_source of shard-00000 for 2 sets"),
        ("documents_per_source", [2, 2], "counts 2 documents of shard-00000, its sets 4"),
        ("sha256", {"tokens": "x"}, r"sha256.tokens is 'x', not a SHA-256"),
    ],
)
def test_a_wrong_field_of_a_shard_is_named(
    make_store: MakeStore, key: str, value: object, words: str
):
    folder = Path(make_store([[([1, 2], 0), ([3], 1)]]).directory)
    without_checksums(folder)
    change(folder, lambda index: index["shards"][0].update({key: value}))
    with pytest.raises(UserError, match=words):
        read_index(folder)


def change(folder: Path, edit: Callable[[dict], None]) -> None:
    """Edits an index by hand, its fingerprint included where it can be computed."""
    index = json.loads((folder / "index.json").read_bytes())
    edit(index)
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        index["fingerprint"] = fingerprint(index)
    (folder / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[" * 100_000, "nested too deep"),
        (b'{"format": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep"),
        (b'{"format": NaN}', "the number NaN"),
        (b"[1]", "a list, not an object"),
        (b"null", "a NoneType, not an object"),
        (b"\xff\xfe", "damaged index"),
        (b"", "damaged index"),
    ],
    ids=["deep", "deep value", "nan", "list", "null", "no utf-8", "empty"],
)
def test_a_file_that_is_no_index_is_one_line(tmp_path: Path, content: bytes, words: str):
    (tmp_path / "index.json").write_bytes(content)
    with pytest.raises(UserError, match=words) as refused:
        read_index(tmp_path)
    assert "\n" not in str(refused.value)
