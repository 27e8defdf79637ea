"""Documents kept apart: where they lie in a row, and which targets count.

The counting store's tokens count up from 0 in documents of seven, so a token says which document it
belongs to and how far it is into it.
"""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.batches.loader import EvalBatches, TrainBatches
from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.store import TokenStore

CountingStore = Callable[[int], TokenStore]
MakeStore = Callable[..., TokenStore]
shared_fixture = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30
)

document = st.tuples(st.lists(st.integers(0, 99), max_size=6), st.integers(0, 1))
shards = st.lists(st.lists(document, max_size=5), min_size=1, max_size=5)


@given(contents=shards, data=st.data())
@shared_fixture
def test_document_offsets_are_distances_from_the_start_of_the_document(
    make_store: MakeStore, contents: list[list[tuple[list[int], int]]], data: st.DataObject
):
    store = make_store(contents)
    offsets = [i for shard in contents for tokens, _ in shard for i in range(len(tokens))]
    start = data.draw(st.integers(0, len(offsets)))
    stop = data.draw(st.integers(start, len(offsets)))
    actual = store.document_offsets(start, stop - start)
    assert actual.tolist() == offsets[start:stop]
    assert actual.dtype == np.int32


@given(contents=shards)
@shared_fixture
def test_document_offsets_in_a_store_of_one_set(
    make_store: MakeStore, contents: list[list[tuple[list[int], int]]]
):
    store = make_store(contents, layout="by_set").only(["b"])
    offsets = [i for shard in contents for tokens, s in shard if s == 1 for i in range(len(tokens))]
    assert store.document_offsets(0, store.tokens).tolist() == offsets


def assert_apart(batch: dict[str, np.ndarray], plain: dict[str, np.ndarray]) -> None:
    """Checks a batch of the counting store against its tokens, and against the plain batch."""
    tokens, targets, real = plain["tokens"], plain["targets"], plain["loss_weights"] > 0
    for row, count in enumerate(real.sum(1)):  # padding comes last
        mine = tokens[row, :count]
        segments = (mine // 7 - mine[:1] // 7).tolist()
        assert batch["segment_ids"][row, :count].tolist() == segments
        positions = [int(min(token % 7, token - mine[0])) for token in mine]
        assert batch["positions"][row, :count].tolist() == positions
    np.testing.assert_array_equal(batch["loss_weights"], plain["loss_weights"] * (targets % 7 != 0))
    for name in ("tokens", "targets", "source_ids"):
        np.testing.assert_array_equal(batch[name], plain[name])
    for name in ("segment_ids", "positions"):
        assert batch[name].dtype == np.int32
        assert batch[name].shape == tokens.shape
    assert batch["loss_weights"].dtype == np.float32


@given(
    tokens=st.integers(20, 200),
    length=st.integers(1, 16),
    batch=st.integers(1, 7),
    step=st.integers(0, 10**7),
    order=st.sampled_from(["windows", "disjoint", "blocks"]),
)
@shared_fixture
def test_training_rows_have_segments_and_positions(
    counting_store: CountingStore, tokens: int, length: int, batch: int, step: int, order: str
):
    store = counting_store(max(tokens, 2 * length + 1))
    choices = {"windows": {}, "disjoint": {"overlap": False}, "blocks": {"block": 2 * length}}
    plain = TrainBatches(store, ReadOrder(length, batch, seed=0, **choices[order]))
    apart = TrainBatches(store, ReadOrder(length, batch, seed=0, documents=True, **choices[order]))
    position = step * batch * length
    actual = apart.rows(position, 0, batch)
    assert_apart(actual, plain.rows(position, 0, batch))
    assert tuple(actual) == apart.fields
    assert tuple(plain.rows(position, 0, batch)) == plain.fields


@given(
    tokens=st.integers(2, 200),
    length=st.integers(1, 16),
    batch=st.integers(1, 7),
    limit=st.none() | st.integers(1, 200),
    data=st.data(),
)
@shared_fixture
def test_evaluation_rows_have_segments_and_positions(
    counting_store: CountingStore,
    tokens: int,
    length: int,
    batch: int,
    limit: int | None,
    data: st.DataObject,
):
    store = counting_store(tokens)
    plain = EvalBatches(store, length, batch, limit)
    apart = EvalBatches(store, length, batch, limit, documents=True)
    index = data.draw(st.integers(0, len(plain) - 1))
    start = data.draw(st.integers(0, batch - 1))
    actual = apart.rows(index, start, batch)
    assert_apart(actual, plain.rows(index, start, batch))
    assert tuple(actual) == apart.fields


def test_shares_of_sets_keep_documents_apart(make_store: MakeStore):
    # Tokens of set s are s·1000, s·1000 + 1, …; its documents have 3 + 4s tokens.
    size = (3, 7)

    def document(number: int, source: int) -> tuple[range, int]:
        first = source * 1000 + number * size[source]
        return range(first, first + size[source]), source

    shards = [[document(i, s) for i in part for s in (0, 1)] for part in (range(9), range(9, 20))]
    store = make_store(shards, vocab_size=2000, layout="by_set")
    batches = train_batches(
        store, ReadOrder(length=5, batch=64, seed=0, documents=True, mixture="a=1,b=2")
    )
    batch = batches.rows(0, 0, 64)
    of_set, into_set = np.divmod(batch["targets"], 1000)
    assert set(of_set.ravel().tolist()) == {0, 1}
    begins = into_set % np.array(size)[of_set] == 0
    np.testing.assert_array_equal(batch["loss_weights"], ~begins)
    # A token that begins a document is the target before it, in the same row.
    np.testing.assert_array_equal(
        np.diff(batch["segment_ids"], axis=1), begins[:, :-1].astype(np.int32)
    )


@pytest.mark.parametrize("length", [7, 14])
def test_rows_of_whole_documents(counting_store: CountingStore, length: int):
    batch = TrainBatches(
        counting_store(29), ReadOrder(length, batch=1, seed=0, shuffle=False, documents=True)
    ).rows(0, 0, 1)
    documents = length // 7
    assert batch["segment_ids"][0].tolist() == np.repeat(range(documents), 7).tolist()
    assert batch["positions"][0].tolist() == list(range(7)) * documents
    assert batch["loss_weights"][0].tolist() == [1, 1, 1, 1, 1, 1, 0] * documents
