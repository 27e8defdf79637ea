"""Batches of packed stores against the store's own rows, taken apart by hand."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.mixture import ROUND, train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.batches.packed import PackedBatches, PackedEvalBatches, eval_batches
from data_pipelines.store.index import PADDING
from data_pipelines.store.several import open_stores
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError
from tests.instruction_data import EOS, WORDS, make_store, many, packed_order

LENGTH, BATCH = 24, 4
PROMPT_BEGINS = WORDS.index("###")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("packed"), many(31), LENGTH)


def row_by_hand(tokens: list[int], padded: int) -> dict[str, list[int]]:
    """Returns the meaning of a row of tokens by its words: the last `padded` are padding.

    An answer begins after `### Response :` and ends with its end-of-text.
    """
    counted, answering = [], False
    for index, token in enumerate(tokens):
        counted.append(int(answering and index < len(tokens) - padded))
        if tokens[max(index - 2, 0) : index + 1] == [
            WORDS.index(w) for w in ("###", "Response", ":")
        ]:
            answering = True
        elif token == EOS:
            answering = False
    return {"tokens": tokens[:-1], "targets": tokens[1:], "loss_weights": counted[1:]}


def rows_of(store: TokenStore) -> list[dict[str, list[int]]]:
    tokens = store.read(0, store.tokens).reshape(-1, LENGTH + 1)
    padding = store.source_ids(0, store.tokens) == store.sources.index(PADDING)
    padded = padding.reshape(-1, LENGTH + 1).sum(1)
    return [row_by_hand(row.tolist(), int(pad)) for row, pad in zip(tokens, padded, strict=True)]


def test_an_epoch_has_every_row_once_with_the_loss_on_its_answers(store: TokenStore):
    batches = PackedBatches(store, packed_order(LENGTH, BATCH, seed=0))
    assert batches.windows_per_epoch == store.tokens // (LENGTH + 1)
    actual = []
    steps = -(-batches.windows_per_epoch // BATCH)
    for step in range(steps):
        batch = batches.rows(step * BATCH * LENGTH, 0, BATCH)
        assert tuple(batch) == batches.fields
        assert batch["loss_weights"].dtype == np.float32
        for row in range(BATCH):
            actual.append(
                {k: batch[k][row].tolist() for k in ("tokens", "targets", "loss_weights")}
            )
    expected = rows_of(store)
    assert sorted(map(str, actual[: len(expected)])) == sorted(
        str({**row, "loss_weights": [float(w) for w in row["loss_weights"]]}) for row in expected
    )


def test_examples_are_kept_apart_and_positions_restart(store: TokenStore):
    plain = TrainBatches(store, ReadOrder(LENGTH, BATCH, 0, overlap=False, documents=True)).rows(
        0, 0, BATCH
    )
    packed = PackedBatches(store, packed_order(LENGTH, BATCH, 0)).rows(0, 0, BATCH)
    for name in ("tokens", "targets", "source_ids", "segment_ids", "positions"):
        np.testing.assert_array_equal(packed[name], plain[name])
    begins = np.diff(packed["segment_ids"], axis=1, prepend=-1) > 0
    np.testing.assert_array_equal(packed["positions"] == 0, begins)
    real = packed["tokens"][begins & (packed["tokens"] != EOS)]
    assert (real == PROMPT_BEGINS).all()
    assert packed["segment_ids"].max() > 0  # some row here has more than one example


def test_a_host_reads_its_rows_of_the_same_batch(store: TokenStore):
    batches = PackedBatches(store, packed_order(LENGTH, BATCH, seed=3))
    position = 7 * BATCH * LENGTH
    whole, part = batches.rows(position, 0, BATCH), batches.rows(position, 1, 3)
    for name, rows in part.items():
        np.testing.assert_array_equal(rows, whole[name][1:3])


def test_padding_is_not_counted_as_read(store: TokenStore):
    batches = PackedBatches(store, packed_order(LENGTH, BATCH, seed=0))
    padding = store.sources.index(PADDING)
    for step in range(9):
        position = step * BATCH * LENGTH
        shifted = batches.rows(position, 0, BATCH)["source_ids"]  # of the targets
        firsts = BATCH * LENGTH - int((shifted == padding).sum())
        # An input is padding if its target is, but for the first of a row's padding.
        padded_rows = int((shifted == padding).any(1).sum())
        assert batches.tokens(position) == firsts + padded_rows
    assert TrainBatches(store, ReadOrder(LENGTH, BATCH, 0)).tokens(0) == BATCH * LENGTH


def test_counting_tokens_reads_the_store_once(store: TokenStore, monkeypatch: pytest.MonkeyPatch):
    batches = PackedBatches(store, packed_order(LENGTH, BATCH))
    counts = [batches.tokens(step * BATCH * LENGTH) for step in range(3)]
    for name in ("read", "whole"):
        monkeypatch.setattr(store._files, name, None)
    assert [batches.tokens(step * BATCH * LENGTH) for step in range(3)] == counts


@pytest.mark.parametrize("batch", [1, 3, 50])
def test_evaluation_reads_every_row_in_order_then_padding(store: TokenStore, batch: int):
    batches = eval_batches(store, LENGTH, batch)
    assert isinstance(batches, PackedEvalBatches)
    expected = rows_of(store)
    actual = [batches.rows(index, 0, batch) for index in range(len(batches))]
    for name in ("tokens", "targets", "loss_weights"):
        rows = np.concatenate([part[name] for part in actual])
        assert rows[: len(expected)].tolist() == [row[name] for row in expected]
        assert not rows[len(expected) :].any()
    for name in batches.fields:
        np.testing.assert_array_equal(batches.rows(0, batch - 1, batch)[name], actual[0][name][-1:])


def test_evaluation_stops_at_limit_tokens(store: TokenStore):
    assert len(PackedEvalBatches(store, LENGTH, 2, limit_tokens=3 * LENGTH)) == 2
    batches = PackedEvalBatches(store, LENGTH, 8, limit_tokens=3 * LENGTH - 1)
    weights = batches.rows(0, 0, 8)["loss_weights"]
    assert weights.any(1).tolist() == [True] * 3 + [False] * 5


def test_a_read_order_other_than_the_packing_is_refused(store: TokenStore, tmp_path: Path):
    with pytest.raises(UserError, match=r"data\.length: 12 .* --length=24"):
        PackedBatches(store, packed_order(12, BATCH, 0))
    with pytest.raises(UserError, match=r"data\.length: 12 .* --length=24"):
        eval_batches(store, 12, BATCH)
    with pytest.raises(UserError, match="holds packed instructions"):
        train_batches(store, ReadOrder(LENGTH, BATCH, 0))
    for wrong in ({"overlap": True}, {"block": 2 * LENGTH}, {"documents": False}):
        with pytest.raises(UserError, match=r"is packed|block"):
            PackedBatches(
                store,
                packed_order(LENGTH, BATCH, **wrong),
            )


def test_a_store_of_plain_text_has_no_answers(counting_store):
    with pytest.raises(UserError, match="does not mark answers: .*prts data instructions"):
        train_batches(counting_store(100), ReadOrder(8, 2, 0, overlap=False, instructions=True))


def test_several_packed_stores_give_their_rows_in_their_shares(store: TokenStore, tmp_path: Path):
    other = make_store(tmp_path, many(47)[31:], LENGTH)
    stores = open_stores(f"{store.directory},0.75;{other.directory},0.25")
    batches = train_batches(stores, packed_order(LENGTH, ROUND, seed=0))
    batch = batches.rows(0, 0, ROUND)
    keys = ("tokens", "targets", "loss_weights")
    rows = [tuple(map(tuple, (batch[key][row].tolist() for key in keys))) for row in range(ROUND)]
    assert len(rows) == ROUND
    ours, theirs = (
        {tuple(map(tuple, row.values())) for row in rows_of(each)} for each in (store, other)
    )
    assert not ours & theirs
    assert sum(row in ours for row in rows) == ROUND * 3 // 4
    assert sum(row in theirs for row in rows) == ROUND // 4
    assert set(rows) == ours | theirs
