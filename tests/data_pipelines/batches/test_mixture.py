from collections import Counter
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.batches.mixture import ROUND, MixedBatches, parse_weights, train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError

SETS = ("A", "B", "RedPajamaGithub")
MakeStore = Callable[..., TokenStore]
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def store(make_store: MakeStore) -> TokenStore:
    """Five shards of A, B and Github mixed; tokens of set s are s·1000, s·1000 + 1, …"""
    counters = Counter[int]()

    def document(source: int, size: int) -> tuple[list[int], int]:
        first = source * 1000 + counters[source]
        counters[source] += size
        return list(range(first, first + size)), source

    shards = [
        [document(i % 3, 3 + (i + j) % 5) for i in range(4 + j)] if j != 2 else [] for j in range(5)
    ]
    return make_store(shards, vocab_size=3000, sources=SETS, layout="by_set")


def whole(store: TokenStore) -> list[int]:
    return store.read(0, store.tokens).tolist()


def test_a_choice_of_sets_is_a_store_with_its_own_fingerprint(store: TokenStore):
    everything = whole(store)
    for names in (["A"], ["RedPajamaGithub", "A"], ["B", "RedPajamaGithub"]):
        ids = sorted(SETS.index(name) for name in names)
        some = store.only(names)
        assert whole(some) == [token for token in everything if token // 1000 in ids]
        assert some.source_ids(0, some.tokens).tolist() == [t // 1000 for t in whole(some)]
        for start in range(0, some.tokens - 5, 7):
            assert some.read(start, 5).tolist() == whole(some)[start : start + 5]
    assert store.only(SETS) is store
    assert whole(store) == everything
    fingerprints = {store.only(names).fingerprint for names in (["A"], ["B"], ["A", "B"], SETS)}
    assert len(fingerprints) == 4
    assert store.only(["B", "A"]).fingerprint == store.only(["A", "B"]).fingerprint


def test_mixtures_by_name(store: TokenStore):
    def sets_of(mixture: str) -> set[int]:
        batches = train_batches(store, ReadOrder(length=2, batch=8, seed=0, mixture=mixture))
        count = -(-batches.windows_per_epoch // 8)
        rows = [batches.rows(i * 16, 0, 8)["source_ids"] for i in range(count)]
        return set(np.concatenate(rows).ravel().tolist())

    assert sets_of("") == sets_of("natural") == {0, 1, 2}
    assert sets_of("no_github") == sets_of("A,B") == {0, 1}
    assert sets_of("A") == {0}
    assert sets_of("RedPajamaGithub=1, B=3") == {1, 2}


weights = st.lists(st.integers(1, 10**6), min_size=2, max_size=3)


@given(shares=weights, rounds=st.integers(0, 10**9), data=st.data(), shuffle=st.booleans())
@shared_fixture
def test_shares_are_exact_and_windows_of_a_set_come_in_order(
    store: TokenStore, shares: list[int], rounds: int, data: st.DataObject, shuffle: bool
):
    mixture = ",".join(f"{name}={share}" for name, share in zip(SETS, shares, strict=False))
    batches = train_batches(
        store, ReadOrder(2, 8, seed=data.draw(st.integers(0, 9)), shuffle=shuffle, mixture=mixture)
    )
    assert isinstance(batches, MixedBatches)
    sets, windows = batches.deal(np.arange(rounds * ROUND, (rounds + 3) * ROUND))
    for number, share in enumerate(shares):
        exact = Fraction(share, sum(shares)) * ROUND
        mine = windows[sets == number]
        # Windows before these rounds and in them differ from the share by rounding.
        if mine.size:
            np.testing.assert_array_equal(mine, mine[0] + np.arange(mine.size))
            assert abs(int(mine[0]) - exact * rounds) < len(shares)
        assert abs(mine.size - exact * 3) < 2 * len(shares)
    # Any slot is dealt alone as it is dealt among others.
    some = data.draw(st.lists(st.integers(0, 3 * ROUND - 1), min_size=1, max_size=9))
    alone = batches.deal(rounds * ROUND + np.array(some))
    np.testing.assert_array_equal(alone, (sets[some], windows[some]))


def test_a_set_is_read_once_before_any_of_it_comes_again(store: TokenStore):
    batches = train_batches(store, ReadOrder(length=2, batch=1, seed=3, mixture="A=1,B=2"))
    windows = {name: (store.only([name]).tokens - 1) // 2 for name in "AB"}
    seen: dict[int, list[int]] = {0: [], 1: []}
    for step in range(300):
        batch = batches.rows(step * 2, 0, 1)
        assert len(set(batch["source_ids"].ravel().tolist())) == 1
        seen[int(batch["source_ids"][0, 0])].append(int(batch["tokens"][0, 0]))
    for source, name in enumerate("AB"):
        epoch = seen[source][: windows[name]]
        assert len(set(epoch)) == windows[name]
        assert sorted(seen[source][windows[name] : 2 * windows[name]]) == sorted(epoch)
    assert abs(len(seen[1]) - 200) < 40  # within a round the order is random


def test_any_slice_of_rows_is_that_slice_of_the_batch(store: TokenStore):
    batches = train_batches(store, ReadOrder(length=3, batch=16, seed=3, mixture="A=1,B=2"))
    position = 3 * (ROUND - 8)  # rounds may end within a batch
    batch, part = batches.rows(position, 0, 16), batches.rows(position, 5, 11)
    for name, array in part.items():
        np.testing.assert_array_equal(array, batch[name][5:11])


def test_the_order_is_pinned(store: TokenStore):
    # A change would silently change every run that is resumed.
    batches = train_batches(store, ReadOrder(length=2, batch=8, seed=0, mixture="A=1,B=2"))
    sets, windows = batches.deal(np.arange(8))
    assert sets.tolist() == [1, 0, 1, 0, 1, 1, 1, 0]
    assert windows.tolist() == [0, 0, 1, 1, 2, 3, 4, 2]


def test_shares_are_read_exactly():
    assert parse_weights("A=0.1, B = 1/3") == {"A": Fraction(1, 10), "B": Fraction(1, 3)}
    for text in ("A=", "A=0.5,B=-1", "A=1,A=2", "A=0.5,B", "A=x", "A=1/0"):
        with pytest.raises(UserError, match="cannot read"):
            parse_weights(text)


def test_unknown_and_mixed_sets_are_refused(store: TokenStore, make_store: MakeStore):
    with pytest.raises(UserError, match="no set 'C' in .*: it has A, B, RedPajamaGithub"):
        train_batches(store, ReadOrder(2, 1, 0, mixture="A,C"))
    with pytest.raises(UserError, match="no set 'C'"):
        train_batches(store, ReadOrder(2, 1, 0, mixture="A=1,C=1"))
    with pytest.raises(UserError, match="smaller than one window"):
        train_batches(store, ReadOrder(500, 1, 0, mixture="A=1,B=1"))
    mixed = make_store([[([1, 2], 0), ([3], 1)]], sources=SETS)
    for mixture in ("A", "no_github", "A=1,B=1"):
        with pytest.raises(UserError, match="sets lie mixed .*--layout=by_set"):
            train_batches(mixed, ReadOrder(1, 1, 0, mixture=mixture))
    assert train_batches(mixed, ReadOrder(1, 1, 0, mixture="natural")).store is mixed
