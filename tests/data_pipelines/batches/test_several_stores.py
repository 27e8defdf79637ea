"""Several stores in given shares, compared with readers of each store alone."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.batches.mixture import ROUND, train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.several import Stores, open_stores, store_shares
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError

MakeStore = Callable[..., TokenStore]
shared_fixture = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20
)


@pytest.fixture(scope="module")
def stores(make_store: MakeStore) -> list[TokenStore]:
    """Three stores of different sizes and sets whose tokens say where they are."""

    def shards(first: int, count: int, sets: int) -> list:
        documents = [
            (range(first + at, first + at + 9), at // 9 % sets) for at in range(0, count, 9)
        ]
        return [documents[: len(documents) // 2], documents[len(documents) // 2 :]]

    return [
        make_store(shards(0, 450, 2), vocab_size=3000, sources=("a", "b"), layout="by_set"),
        make_store(shards(1000, 270, 1), vocab_size=3000, sources=("code",)),
        make_store(shards(2000, 900, 2), vocab_size=3000, sources=("a", "c"), layout="by_set"),
    ]


def joined(stores: list[TokenStore], shares: list[int]) -> Stores:
    entries = zip(stores, shares, strict=True)
    opened = open_stores(";".join(f"{store.directory},{share}" for store, share in entries))
    assert isinstance(opened, Stores)
    return opened


@given(
    shares=st.lists(st.integers(1, 50), min_size=2, max_size=3),
    blocks=st.sampled_from([(0, 1), (16, 1), (16, 4)]),
    documents=st.booleans(),
    shuffle=st.booleans(),
    overlap=st.booleans(),
    own=st.sampled_from(["", "a=2,b=1", "b", "natural"]),
    data=st.data(),
)
@shared_fixture
def test_every_row_is_the_next_window_of_its_store(
    stores: list[TokenStore],
    shares: list[int],
    blocks: tuple[int, int],
    documents: bool,
    shuffle: bool,
    overlap: bool,
    own: str,
    data: st.DataObject,
):
    """Reads all windows of two rounds in order and counts those of each store by itself."""
    stores = stores[: len(shares)]
    block, pieces = blocks
    order = ReadOrder(
        length=4,
        batch=64,
        seed=data.draw(st.integers(0, 9)),
        shuffle=shuffle,
        overlap=overlap or block > 0,
        block=block,
        pieces=pieces,
        documents=documents,
        mixture=";".join([own, *[""] * (len(shares) - 1)]),
    )
    both = joined(stores, shares)
    batches = train_batches(both, order)
    mixtures = [own, "", ""]
    open_tokens = [int(batches.open_tokens * share) for share in both.shares]
    alone = [
        train_batches(store, dataclasses.replace(order, mixture=mixture), tokens)
        for store, mixture, tokens in zip(stores, mixtures, open_tokens, strict=False)
    ]
    borders = np.cumsum([len(store.sources) for store in stores])
    read = [0] * len(stores)
    for step in range(2 * ROUND // 64):
        batch = batches.rows(step * 64 * 4, 0, 64)
        assert set(batch) == set(batches.fields)
        owners = np.searchsorted(borders, batch["source_ids"][:, 0], side="right")
        for number, reader in enumerate(alone):
            here = np.flatnonzero(owners == number)
            expected = reader.take(np.arange(read[number], read[number] + here.size))
            expected["source_ids"] = expected["source_ids"] + both.first_sources[number]
            for name, array in expected.items():
                np.testing.assert_array_equal(batch[name][here], array, err_msg=name)
                assert batch[name].dtype == array.dtype
            read[number] += here.size
        # A host reads its rows alone, and a seek reads nothing before them.
        start = data.draw(st.integers(0, 63)) if step % 16 == 0 else 60
        part = train_batches(both, order).rows(step * 64 * 4, start, 64)
        for name, array in part.items():
            np.testing.assert_array_equal(array, batch[name][start:], err_msg=name)
        for row, (store, first) in enumerate(batches.starts(order.consumed(step * 256, 0, 64))):
            assert store.read(first, 4).tolist() == batch["tokens"][row].tolist()
    for count, share in zip(read, shares, strict=True):
        assert abs(count - Fraction(share, sum(shares)) * 2 * ROUND) < len(shares)
    assert not batches.keeps_position(64)


def test_sources_and_fingerprint_name_the_stores(stores: list[TokenStore]):
    both = joined(stores[:2], [7, 3])
    one, two = (store.directory.rsplit("/", 1)[1] for store in both.stores)
    assert both.sources == (f"{one}/a", f"{one}/b", f"{two}/code")
    first, second = both.stores
    assert both.fingerprint == f"{first.fingerprint}=7/10,{second.fingerprint}=3/10"
    assert joined(stores[:2], [70, 30]).fingerprint == both.fingerprint
    chosen = train_batches(both, ReadOrder(4, 8, mixture="b;")).store
    assert chosen.fingerprint == f"{first.only(['b']).fingerprint}=7/10,{second.fingerprint}=3/10"
    assert (both.tokenizer, both.eos_id) == (first.tokenizer, first.eos_id)


def test_the_order_is_pinned(make_store: MakeStore):
    # A change would silently change every run that is resumed.
    texts = [[[(range(first, first + 40), 0)]] for first in (0, 40)]
    both = joined([make_store(shards, vocab_size=100) for shards in texts], [1, 2])
    firsts = train_batches(both, ReadOrder(4, 6, seed=0)).rows(0, 0, 6)["tokens"][:, 0]
    assert firsts.tolist() == [60, 24, 20, 0, 68, 32]


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("/data/web", {"/data/web": 1}),
        ("/data/web,0.7", {"/data/web,0.7": 1}),
        ("gs://b/date=2020,x/web , 0.7 ;/c,1/2;", None),
        ("gs://b/date=2020,x/web , 0.7 ;/c,0.3", {"gs://b/date=2020,x/web": 7, "/c": 3}),
        ("/a,1;/b,1e-1;/c,1/10", {"/a": 10, "/b": 1, "/c": 1}),
        ("/a,1;/b", None),
        ("/a,1;/a,2", None),
        ("/a,1;/b,0", None),
        ("/a,1;/b,-1", None),
        ("/a,1;/b,nan", None),
        ("/a,1;/b,1e999999999", None),
        ("/a,1;,1", None),
    ],
)
def test_stores_and_shares_are_read_exactly_or_refused(train: str, expected: dict[str, int] | None):
    if expected is None:
        with pytest.raises(UserError, match=r"config\.data\.train: cannot read"):
            store_shares(train)
        return
    total = sum(expected.values())
    assert store_shares(train) == {name: Fraction(n, total) for name, n in expected.items()}


def test_a_folder_with_a_semicolon_in_its_name_is_one_store(tmp_path, monkeypatch):
    (tmp_path / "a,1;b,2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert store_shares("a,1;b,2") == {"a,1;b,2": 1}


def test_stores_are_named_by_the_part_of_their_paths_that_differs(stores, tmp_path):
    def names(*links: str) -> tuple[str, ...]:
        for link, store in zip(links, stores, strict=False):
            (tmp_path / link).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / link).symlink_to(store.directory)
        opened = open_stores(";".join(f"{tmp_path / link}/,1" for link in links))
        assert isinstance(opened, Stores)
        return opened.names

    assert names("x/web/train", "x/code/train") == ("web", "code")
    assert names("y/web", "y/code") == ("web", "code")
    assert names("z/web/train", "z/code/v1", "w/code/v1") == (
        "z/web/train",
        "z/code/v1",
        "w/code/v1",
    )


def test_stores_that_do_not_fit_together_are_refused(
    stores: list[TokenStore], make_store: MakeStore
):
    one = stores[0].directory
    larger = make_store([[(range(20), 0)]], vocab_size=3001).directory
    with pytest.raises(UserError, match=f"{one} and {larger} differ in the number of token ids"):
        open_stores(f"{one},1;{larger},1")
    ends = make_store([[(range(20), 0)]], vocab_size=3000, eos_id=3).directory
    with pytest.raises(UserError, match="differ in the end id: 2 and 3; .* same --end_id"):
        open_stores(f"{one},1;{ends},1")
    other = make_store([[(range(20), 0)]], vocab_size=3000, tokenizer="f" * 64).directory
    with pytest.raises(UserError, match="differ in the tokenizer .*the same --tokenizer"):
        open_stores(f"{one},1;{other},1")
    with pytest.raises(UserError, match="hold the same tokens"):
        open_stores(f"{one},1;{one}/.,1")
    with pytest.raises(UserError, match="only config.data.train takes several"):
        TokenStore.open(f"{one},1;{larger},1")
    both = joined(stores[:2], [1, 1])
    with pytest.raises(UserError, match="'b' is for 1 stores, and config.data.train names 2"):
        train_batches(both, ReadOrder(4, 8, mixture="b"))
    with pytest.raises(UserError, match="is for several stores, and config.data.train names one"):
        train_batches(stores[0], ReadOrder(4, 8, mixture="b;"))
    with pytest.raises(UserError, match="no set 'x'"):
        train_batches(both, ReadOrder(4, 8, mixture="a=1,x=1;"))
    with pytest.raises(UserError, match="smaller than one window"):
        train_batches(both, ReadOrder(400, 8))
