"""Blocks whose windows are interleaved with those of other blocks."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.mixture import MixedBatches, train_batches
from data_pipelines.batches.open_blocks import OpenBlocks
from data_pipelines.batches.order import OPEN_TOKENS, ReadOrder
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError

MakeStore = Callable[..., TokenStore]
CountingStore = Callable[[int], TokenStore]
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def in_turns(order: ReadOrder, blocks: int, open_tokens: int) -> list[tuple[int, int]]:
    """An epoch as (block, window in it), by following every block from its opening to its end."""
    pieces = order.block_pieces
    windows = order.block // order.length // pieces
    apart = max(min(open_tokens // order.block, blocks) // pieces, 1)
    turns: list[dict[int, int]] = [{} for _ in range(blocks)]
    for block in range(blocks):
        for piece in range(pieces):
            turns[(block + piece * apart) % blocks][piece] = block
    return [
        (turn[piece], piece * windows + window)
        for turn in turns
        for piece in range(pieces)
        for window in range(windows)
    ]


@given(
    length=st.integers(1, 3),
    windows=st.integers(1, 40),
    pieces=st.integers(1, 50),
    blocks=st.integers(1, 60),
    open_tokens=st.sampled_from([1, 100, 1000, OPEN_TOKENS]),
)
def test_an_epoch_is_every_window_once_in_turns(
    length: int, windows: int, pieces: int, blocks: int, open_tokens: int
):
    order = ReadOrder(length, 1, block=length * windows, pieces=pieces)
    assert order.piece % length == 0
    assert order.block % order.piece == 0
    assert order.block_pieces >= min(pieces, windows)
    expected = in_turns(order, blocks, open_tokens)
    assert len(set(expected)) == blocks * windows
    opened, within = order.spread(np.arange(blocks * windows), blocks, open_tokens)
    assert list(zip(opened.tolist(), within.tolist(), strict=True)) == expected


def test_the_interleaved_order_is_pinned(counting_store: CountingStore):
    # See `test_the_order_is_pinned`.
    batches = TrainBatches(
        counting_store(200), ReadOrder(length=4, batch=12, seed=0, block=16, pieces=4)
    )
    firsts = batches.rows(0, 0, 12)["tokens"][:, 0].tolist()
    assert firsts == [0, 52, 168, 92, 16, 180, 104, 156, 64, 36, 120, 140]


@given(strata=st.integers(1, 40), blocks=st.integers(1, 300), seed=st.integers(0, 9))
def test_each_round_opens_a_block_of_each_stratum(strata: int, blocks: int, seed: int):
    order = ReadOrder(1, 1, block=2, strata=strata)
    opened = order.blocks_of(np.arange(blocks), blocks, str(seed))
    assert sorted(opened.tolist()) == list(range(blocks))
    parts = np.array_split(np.arange(blocks), min(strata, blocks))
    stratum = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    rounds = stratum[opened[: blocks - blocks % len(parts)]].reshape(-1, len(parts))
    if strata > 1:
        assert (np.sort(rounds) == np.arange(len(parts))).all()


def test_the_order_with_strata_is_pinned(counting_store: CountingStore):
    # See `test_the_order_is_pinned`.
    order = ReadOrder(length=4, batch=12, seed=0, block=16, pieces=4, strata=3)
    firsts = TrainBatches(counting_store(200), order).rows(0, 0, 12)["tokens"][:, 0].tolist()
    assert firsts == [144, 100, 40, 28, 0, 132, 88, 76, 112, 52, 184, 172]


@given(
    batch=st.integers(1, 9),
    documents=st.booleans(),
    strata=st.sampled_from([1, 3]),
    mixture=st.sampled_from(["", "a", "a=2,b=1"]),
    data=st.data(),
)
@settings(shared_fixture, max_examples=30)
def test_any_rows_at_any_step_are_those_of_a_reader_of_single_windows(
    make_store: MakeStore,
    batch: int,
    documents: bool,
    strata: int,
    mixture: str,
    data: st.DataObject,
):
    """Open blocks, on any number of hosts and after any seek, change no value."""
    shards = [
        [(range(s * 90 + d * 9, s * 90 + d * 9 + 9), d % 2) for d in range(10)] for s in range(5)
    ]
    store = make_store(shards, vocab_size=500, layout="by_set")
    options = {"documents": documents, "strata": strata, "mixture": mixture}
    order = ReadOrder(4, batch, seed=1, block=16, pieces=4, **options)
    batches = train_batches(store, order)
    steps = data.draw(st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
    for step in [*steps, steps[0] + 1]:
        start = data.draw(st.integers(0, batch - 1))
        fresh = train_batches(store, order).rows(step * batch * 4, 0, batch)
        for name, array in batches.rows(step * batch * 4, start, batch).items():
            np.testing.assert_array_equal(array, fresh[name][start:])
    parts = batches.parts if isinstance(batches, MixedBatches) else [batches]
    for part in parts:
        consumed = np.arange(20, 20 + batch)
        windows = part.windows(consumed)
        starts = part.store_windows(consumed) * 4
        for row, first in enumerate(starts.tolist()):
            np.testing.assert_array_equal(windows[0, row], part.store.read(first, 5))
            np.testing.assert_array_equal(windows[1, row], part.store.source_ids(first, 5))
            if documents:
                np.testing.assert_array_equal(
                    windows[2, row], part.store.document_offsets(first, 5)
                )


def test_every_block_is_read_once_and_few_stay_open(
    counting_store: CountingStore, monkeypatch: pytest.MonkeyPatch
):
    store = counting_store(16 * 300 + 1)
    order = ReadOrder(4, 8, seed=1, block=16, pieces=4)
    batches = TrainBatches(store, order, open_tokens=16 * 40)
    read: list[int] = []
    read_many = TokenStore.read_many

    def counting(store: TokenStore, spans: list, documents: bool) -> list:
        read.extend(start // 16 for start, _ in spans)
        return read_many(store, spans, documents)

    monkeypatch.setattr(TokenStore, "read_many", counting)
    open_now = []
    for step in range(batches.windows_per_epoch // 8):
        batches.rows(step * 32, 0, 8)
        open_now.append(batches._open_blocks.nbytes)
    # The blocks that are open where an epoch begins and ends are read in both places.
    assert set(read) == set(range(300))
    assert len(read) <= 300 + 40
    assert max(open_now) <= (40 + 4) * 17 * 3


def test_shares_scatter_little_more_than_with_single_windows(make_store: MakeStore):
    """A batch is 4 blocks of 16 windows in a row, or a window of each of 64 blocks."""
    generator = np.random.default_rng(0)
    documents = [([1] * 512, int(set_)) for set_ in generator.integers(0, 4, 1200)]
    store = make_store([documents], sources=("a", "b", "c", "d"))

    def scatter(**options: int) -> float:
        batches = TrainBatches(store, ReadOrder(8, 64, seed=0, **options))
        steps = batches.windows_per_epoch // 64
        shares = [
            np.mean(batches.rows(step * 512, 0, 64)["source_ids"][:, 0] == 0)
            for step in range(0, steps, 4)
        ]
        return float(np.std(shares))

    single = scatter()
    assert scatter(block=128, pieces=1) > 3 * single
    assert scatter(block=128, pieces=16) < 1.5 * single


def test_strata_scatter_shares_less_than_single_windows(make_store: MakeStore):
    """Also where a piece has four windows, so that a batch draws from 16 blocks."""
    sets = np.random.default_rng(0).integers(0, 4, (30, 40))
    shards = [[([1] * 512, int(number)) for number in np.sort(of_shard)] for of_shard in sets]
    store = make_store(shards, sources=("a", "b", "c", "d"), layout="by_set")

    def scatter(**options: int) -> float:
        batches = train_batches(store, ReadOrder(8, 64, seed=0, **options), open_tokens=16 * 128)
        read = [batches.starts(np.arange(64) + at * 64) for at in range(0, 1100, 5)]
        sources = [[one.source_ids(start, 1)[0] for one, start in rows] for rows in read]
        return float(np.std(np.mean(np.array(sources) == 0, axis=1)))

    few = {"block": 128, "pieces": 4}
    assert scatter(**few) > 1.5 * scatter()
    assert scatter(**few, strata=4) < 0.8 * scatter()


def test_a_block_without_pieces_or_strata_is_refused():
    with pytest.raises(UserError, match="pieces=0, strata=1: give at least 1"):
        ReadOrder(4, 8, block=16, pieces=0)
    with pytest.raises(UserError, match="pieces=1, strata=0: give at least 1"):
        ReadOrder(4, 8, block=16, strata=0)


@pytest.mark.parametrize("strata", [1, 5])
def test_a_length_below_the_piece_keeps_the_position(counting_store: CountingStore, strata: int):
    store = counting_store(2000)
    short = TrainBatches(store, ReadOrder(2, 6, seed=1, block=64, pieces=4, strata=strata))
    long = TrainBatches(store, ReadOrder(16, 3, seed=1, block=64, pieces=4, strata=strata))
    assert short.order.piece == long.order.piece == 16
    epoch = 64 * (1999 // 64)
    first = 16 * 3 * 5
    before = [short.rows(position, 0, 6)["tokens"] for position in range(0, first, 12)]
    after = [long.rows(position, 0, 3)["tokens"] for position in range(first, epoch, 48)]
    read = np.concatenate([batch.reshape(-1) for batch in (*before, *after)])
    assert sorted(read[:epoch].tolist()) == list(range(epoch))
    assert OpenBlocks(store, 64, 1, False).nbytes == 0
