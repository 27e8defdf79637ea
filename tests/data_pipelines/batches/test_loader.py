from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.batches.loader import EvalBatches, TrainBatches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError

CountingStore = Callable[[int], TokenStore]
shared_fixture = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def concatenate(batches: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


@given(
    tokens=st.integers(2, 200),
    length=st.integers(1, 12),
    batch=st.integers(1, 7),
    overlap=st.booleans(),
    shuffle=st.booleans(),
)
@shared_fixture
def test_every_window_comes_once_an_epoch(
    counting_store: CountingStore,
    tokens: int,
    length: int,
    batch: int,
    overlap: bool,
    shuffle: bool,
):
    # The store counts up from 0, so a window's tokens say where it lies.
    stride = length if overlap else length + 1
    expected = [
        list(range(start, start + length))
        for start in range(0, tokens, stride)
        if start + length + 1 <= tokens
    ]
    store = counting_store(tokens)
    if not expected:
        with pytest.raises(UserError, match="smaller than one window"):
            TrainBatches(store, ReadOrder(length, batch, seed=0, shuffle=shuffle, overlap=overlap))
        return
    batches = TrainBatches(
        store, ReadOrder(length, batch, seed=0, shuffle=shuffle, overlap=overlap)
    )
    assert batches.windows_per_epoch == len(expected)

    # As many batches as make two epochs and more; epochs end anywhere within a batch.
    count = -(-2 * len(expected) // batch)
    rows = concatenate([batches.rows(i * batch * length, 0, batch) for i in range(count)])
    for epoch in range(2):
        windows = rows["tokens"][epoch * len(expected) : (epoch + 1) * len(expected)].tolist()
        assert sorted(windows) == expected
        assert shuffle or windows == expected
    np.testing.assert_array_equal(rows["targets"], rows["tokens"] + 1)
    np.testing.assert_array_equal(rows["source_ids"], rows["targets"] // 7 % 2)
    np.testing.assert_array_equal(rows["loss_weights"], np.ones_like(rows["tokens"]))


@given(
    tokens=st.integers(10, 200),
    length=st.integers(1, 9),
    batch=st.integers(1, 9),
    step=st.integers(0, 10**7),
    data=st.data(),
)
@shared_fixture
def test_any_slice_of_rows_is_that_slice_of_the_batch(
    counting_store: CountingStore,
    tokens: int,
    length: int,
    batch: int,
    step: int,
    data: st.DataObject,
):
    batches = TrainBatches(counting_store(tokens), ReadOrder(length, batch, seed=3))
    start = data.draw(st.integers(0, batch))
    stop = data.draw(st.integers(start, batch))
    position = step * batch * length
    whole, part = batches.rows(position, 0, batch), batches.rows(position, start, stop)
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][start:stop])
        assert array.shape == (stop - start, length)
        assert array.dtype == (np.float32 if name == "loss_weights" else np.int32)


def test_a_batch_depends_on_windows_consumed_and_not_on_the_batch_size(
    counting_store: CountingStore,
):
    # So a run may go on with another batch size, as after growth, and lose no window.
    store = counting_store(500)
    small = TrainBatches(store, ReadOrder(length=5, batch=2, seed=1))
    large = TrainBatches(store, ReadOrder(length=5, batch=6, seed=1))
    parts = concatenate([small.rows(position, 0, 2) for position in (30, 40, 50)])
    np.testing.assert_array_equal(large.rows(30, 0, 6)["tokens"], parts["tokens"])


def test_epochs_seeds_and_stores_have_different_orders(counting_store: CountingStore):
    def order(tokens: int, seed: int, epoch: int) -> tuple[int, ...]:
        batches = TrainBatches(counting_store(tokens), ReadOrder(length=4, batch=50, seed=seed))
        epoch_tokens = batches.windows_per_epoch * 4
        return tuple(batches.rows(epoch * epoch_tokens, 0, 50)["tokens"][:, 0].tolist())

    orders = [order(201, 0, 0), order(201, 0, 1), order(201, 1, 0), order(202, 0, 0)]
    assert all(sorted(windows) == list(range(0, 200, 4)) for windows in orders)
    assert len(set(orders)) == 4
    assert order(201, 0, 0) == orders[0]


def test_the_order_is_pinned(counting_store: CountingStore):
    # A change of the order would silently change every run that is resumed: raise the store's
    # format or say so in the changelog before this list is edited.
    batches = TrainBatches(counting_store(64), ReadOrder(length=4, batch=5, seed=0))
    assert batches.rows(0, 0, 5)["tokens"][:, 0].tolist() == [32, 48, 8, 16, 56]


@given(
    tokens=st.integers(14, 300),
    lengths=st.sampled_from([(1, 12), (12, 4), (6, 3), (4, 4), (2, 6)]),
    batch=st.integers(1, 7),
)
@settings(shared_fixture, max_examples=30)
def test_with_blocks_every_window_comes_once_an_epoch_and_blocks_stay_together(
    counting_store: CountingStore, tokens: int, lengths: tuple[int, int], batch: int
):
    store, block = counting_store(tokens), 12
    blocks = (tokens - 1) // block
    for length in lengths:
        batches = TrainBatches(store, ReadOrder(length, batch, seed=5, block=block))
        assert batches.windows_per_epoch == blocks * block // length
        count = -(-2 * batches.windows_per_epoch // batch)
        rows = concatenate([batches.rows(i * batch * length, 0, batch) for i in range(count)])
        for epoch in range(2):
            first = epoch * batches.windows_per_epoch
            epoch_tokens = rows["tokens"][first : first + batches.windows_per_epoch].reshape(-1)
            assert sorted(epoch_tokens.tolist()) == list(range(blocks * block))
            for together in epoch_tokens.reshape(blocks, block):
                np.testing.assert_array_equal(together, together[0] + np.arange(block))
                assert together[0] % block == 0
        np.testing.assert_array_equal(rows["targets"], rows["tokens"] + 1)


def test_with_blocks_a_position_stays_exact_at_another_length_and_batch(
    counting_store: CountingStore,
):
    store = counting_store(1000)
    short = TrainBatches(store, ReadOrder(length=4, batch=6, seed=1, block=16))
    long = TrainBatches(store, ReadOrder(length=8, batch=2, seed=1, block=16))
    epoch = 16 * ((1000 - 1) // 16)
    # Seven steps of the short run, and the long run's to the end of the epoch.
    before = [short.rows(position, 0, 6)["tokens"] for position in range(0, 168, 24)]
    assert long.keeps_position(168)
    after = [long.rows(position, 0, 2)["tokens"] for position in range(168, epoch, 16)]
    read = np.concatenate([batch.reshape(-1) for batch in (*before, *after)])
    assert sorted(read[:epoch].tolist()) == list(range(epoch))
    assert not long.keeps_position(4)
    assert not TrainBatches(store, ReadOrder(length=8, batch=2, seed=1)).keeps_position(168)


def test_blocks_must_fit(counting_store: CountingStore):
    store = counting_store(100)
    with pytest.raises(UserError, match="block=12 is not a multiple of length=8"):
        TrainBatches(store, ReadOrder(length=8, batch=1, seed=0, block=12))
    with pytest.raises(UserError, match="overlap=False"):
        TrainBatches(store, ReadOrder(length=4, batch=1, seed=0, overlap=False, block=12))
    with pytest.raises(UserError, match="smaller than one window: .* needs 121"):
        TrainBatches(store, ReadOrder(length=4, batch=1, seed=0, block=120))


def test_a_position_counted_at_another_length_is_refused(counting_store: CountingStore):
    batches = TrainBatches(counting_store(100), ReadOrder(length=8, batch=2, seed=0))
    with pytest.raises(UserError, match="position 12 is not a multiple of length=8"):
        batches.rows(12, 0, 2)
    with pytest.raises(ValueError, match=r"rows \[0, 3\) of a batch of 2"):
        batches.rows(0, 0, 3)


def test_sizes_must_make_sense(counting_store: CountingStore):
    store = counting_store(100)
    with pytest.raises(UserError, match="length=0, batch=2"):
        TrainBatches(store, ReadOrder(length=0, batch=2, seed=0))
    with pytest.raises(UserError, match="length=4, batch=0"):
        EvalBatches(store, length=4, batch=0)
    with pytest.raises(UserError, match="limit_tokens=0"):
        EvalBatches(store, length=4, batch=1, limit_tokens=0)
    with pytest.raises(UserError, match="nothing to evaluate on"):
        EvalBatches(counting_store(1), length=4, batch=1)


@given(
    tokens=st.integers(2, 200),
    length=st.integers(1, 12),
    batch=st.integers(1, 7),
    limit=st.none() | st.integers(1, 250),
)
@shared_fixture
def test_evaluation_has_every_token_after_the_first_as_a_target_once_in_order(
    counting_store: CountingStore, tokens: int, length: int, batch: int, limit: int | None
):
    batches = EvalBatches(counting_store(tokens), length, batch, limit_tokens=limit)
    rows = concatenate([batches.rows(i, 0, batch) for i in range(len(batches))])
    assert rows["tokens"].shape[1] == length
    weighted = rows["loss_weights"] == 1
    targets = rows["targets"][weighted]
    wanted = min(tokens - 1, limit or tokens)
    assert targets.tolist() == list(range(1, 1 + wanted))
    np.testing.assert_array_equal(rows["tokens"][weighted], targets - 1)
    np.testing.assert_array_equal(rows["source_ids"][weighted], targets // 7 % 2)
    # The rest is padding, less than a batch of it.
    assert (rows["loss_weights"][~weighted] == 0).all()
    assert (~weighted).sum() < batch * length


@given(length=st.integers(1, 9), batch=st.integers(1, 7), data=st.data())
@shared_fixture
def test_any_slice_of_an_evaluation_batch_is_that_slice(
    counting_store: CountingStore, length: int, batch: int, data: st.DataObject
):
    batches = EvalBatches(counting_store(100), length, batch)
    index = data.draw(st.integers(0, len(batches) - 1))
    start = data.draw(st.integers(0, batch))
    stop = data.draw(st.integers(start, batch))
    whole, part = batches.rows(index, 0, batch), batches.rows(index, start, stop)
    for name, array in part.items():
        np.testing.assert_array_equal(array, whole[name][start:stop])
        assert array.dtype == (np.float32 if name == "loss_weights" else np.int32)


def test_there_is_no_batch_after_the_last(counting_store: CountingStore):
    batches = EvalBatches(counting_store(100), length=10, batch=3)
    assert len(batches) == 4
    with pytest.raises(IndexError, match="batch 4 of 4"):
        batches.rows(4, 0, 3)
