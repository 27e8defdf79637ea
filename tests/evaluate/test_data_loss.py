"""Loss and bits per byte of a store and of text against one row, and one document, at a time."""

import dataclasses
import itertools
import math
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from prts_jax.errors import UserError
from prts_jax.evaluate import data_loss, memory
from prts_jax.evaluate.loaded import LoadedModel, load
from prts_jax.evaluate.scores import ALL, BITS, LOSS
from prts_jax.model.architecture import logits
from tests.evaluate import worded
from tests.evaluate.worded import LENGTH, SOURCES


@pytest.fixture(scope="module")
def loaded(words: Path) -> LoadedModel:
    return load(str(words / "model"), "float32", attention="xla")


@pytest.fixture(scope="module")
def apart(words: Path) -> LoadedModel:
    return load(str(words / "apart"), "float32", attention="xla")


def brute_force(loaded: LoadedModel, words: Path, documents: bool) -> list[tuple[int, int, float]]:
    """(row, source, nats) of every target; the whole model anew for each row, or document in it."""
    texts = worded.tokens_of(worded.write_text(words / "again"))
    tokens = np.concatenate([text for text, _ in texts])
    sources = np.concatenate([np.full(len(text), source) for text, source in texts])
    starts = set(np.cumsum([0] + [len(text) for text, _ in texts]).tolist())
    actual = []
    for row, first in enumerate(range(0, len(tokens) - 1, LENGTH)):
        stop = min(first + LENGTH, len(tokens) - 1)
        cuts = [first, *(at for at in range(first + 1, stop) if documents and at in starts), stop]
        for begin, end in itertools.pairwise(cuts):
            given = jnp.asarray(np.pad(tokens[begin:end], (0, LENGTH - end + begin)))[None]
            scores = np.asarray(logits(loaded.params, given, loaded.model, loaded.compute)[0])
            for spot, target in enumerate(range(begin + 1, end + 1)):
                if documents and target in starts:
                    continue
                row_of_scores = scores[spot].astype(np.float64)
                nats = math.log(np.exp(row_of_scores).sum()) - row_of_scores[tokens[target]]
                actual.append((row, int(sources[target]), nats))
    return actual


def bits_per_byte(texts: list[tuple[str, str]], loss: float, source: str | None = None) -> float:
    chosen = [text for of, text in texts if source in (None, of)]
    tokens = sum(len(text.split()) + 1 for text in chosen)
    return loss / math.log(2) * tokens / sum(len(text.encode()) for text in chosen)


@pytest.mark.parametrize("documents", [False, True], ids=["rows", "documents apart"])
@pytest.mark.parametrize("kind", ["store", "text"])
def test_loss_and_bits_by_source_equal_brute_force(
    loaded: LoadedModel, apart: LoadedModel, words: Path, kind: str, documents: bool
) -> None:
    model = apart if documents else loaded  # as each was trained
    if kind == "store":
        data = data_loss.open_store(model, str(words / "store"))
    else:
        data = data_loss.read_text(model, str(words / "text"))
    actual, scores = data_loss.measure(model, data, rows=4)
    expected = brute_force(model, words, documents)
    texts = worded.write_text(words / "again")
    assert actual["tokens"] == len(expected) == (82 if documents else 84)
    loss = np.mean([nats for _, _, nats in expected])
    assert actual["loss"] == pytest.approx(loss, rel=1e-5)
    assert actual["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert actual["bits_per_byte"] == pytest.approx(bits_per_byte(texts, loss), rel=1e-5)
    assert list(actual["per_source"]) == list(SOURCES)
    for source, name in enumerate(SOURCES):
        one = [nats for _, of, nats in expected if of == source]
        measured = actual["per_source"][name]
        assert measured["tokens"] == len(one)
        assert measured["loss"] == pytest.approx(np.mean(one), rel=1e-5)
        assert measured["bits_per_byte"] == pytest.approx(
            bits_per_byte(texts, np.mean(one), name), rel=1e-5
        )
    by_name = {(one.group, one.name): one for one in scores}
    assert set(by_name) == {(group, name) for group in (LOSS, BITS) for name in (ALL, *SOURCES)}
    rows = [sum(nats for at, _, nats in expected if at == row) for row in range(6)]
    np.testing.assert_allclose(by_name[LOSS, ALL].values, rows, rtol=1e-5)
    assert by_name[BITS, ALL].estimate.value == pytest.approx(actual["bits_per_byte"])


def test_text_equals_a_store_of_it(loaded: LoadedModel, words: Path) -> None:
    store = data_loss.open_store(loaded, str(words / "store"))
    text = data_loss.read_text(loaded, str(words / "text"))
    ours, _ = data_loss.measure(loaded, store, rows=4)
    theirs, _ = data_loss.measure(loaded, text, rows=4)
    assert ours == theirs


def test_documents_default_to_the_training_setting(
    loaded: LoadedModel, apart: LoadedModel, words: Path
) -> None:
    data = data_loss.open_store(loaded, str(words / "store"))

    def loss(model: LoadedModel, documents: bool | None) -> float:
        return float(data_loss.measure(model, data, rows=4, documents=documents)[0]["loss"])

    assert loss(apart, None) == loss(loaded, True)
    assert loss(apart, False) == loss(loaded, None) != loss(loaded, True)


@pytest.mark.parametrize("rows", [1, 5, 40])
def test_padding_changes_nothing(loaded: LoadedModel, words: Path, rows: int) -> None:
    data = data_loss.open_store(loaded, str(words / "store"))  # 84 targets: 5 rows and a quarter
    one, scores = data_loss.measure(loaded, data, rows=4)
    other, others = data_loss.measure(loaded, data, rows=rows)
    assert other["tokens"] == one["tokens"]
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)
    for a, b in zip(scores, others, strict=True):
        assert b.pairs_with(a)
        np.testing.assert_allclose(b.values, a.values, rtol=1e-5)


@pytest.mark.parametrize("rows", [16, 10**12])
def test_batches_are_as_large_as_memory_allows(
    loaded: LoadedModel, words: Path, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_loss.open_store(loaded, str(words / "store"))
    whole, _ = data_loss.measure(loaded, data, rows=4)
    monkeypatch.setattr(memory, "BATCH_BYTES", 2 * memory.bytes_of_row(loaded.model, LENGTH))
    assert memory.rows_of_batch(loaded.model, rows, LENGTH, shares=1) == 2
    assert memory.rows_of_batch(loaded.model, rows, 10**9, shares=4) == 4
    small, _ = data_loss.measure(loaded, data, rows)
    assert small["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    monkeypatch.setattr(memory, "_free_bytes", lambda: 100)
    with pytest.raises(UserError, match=r"rows of 16 tokens: a batch needs .*smaller --length"):
        data_loss.measure(loaded, data, rows)


def test_rows_are_those_of_training_or_at_most_2048_of_an_import(
    loaded: LoadedModel, words: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_loss.open_store(loaded, str(words / "store"))
    imported = {"format": "hf", "path": "m", "dtype": "float32", "length": 131_072}

    def length(**changed: Any) -> int:
        model = dataclasses.replace(loaded, lineage=dataclasses.replace(loaded.lineage, **changed))
        return int(data_loss.measure(model, data, rows=4)[0]["length"])

    monkeypatch.setattr(data_loss, "IMPORT_LENGTH", 20)
    assert length() == LENGTH
    assert length(imported=imported, tokens=0) == 20
    assert length(imported=imported, tokens=64) == LENGTH
    assert length(imported=imported | {"length": 8}, tokens=0) == 8


def test_different_lengths_are_not_compared(loaded: LoadedModel, words: Path) -> None:
    data = data_loss.open_store(loaded, str(words / "store"))
    long, short = (data_loss.measure(loaded, data, rows=4, length=n)[1] for n in (0, 7))
    assert short[0].group == LOSS
    assert short[0].minus(long[0]) is None


def test_unpredictable_data_is_refused(loaded: LoadedModel, words: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="names no validation store; give --data=DIR or --text"):
        data_loss.open_store(loaded)
    with pytest.raises(UserError, match="no finished token store"):
        data_loss.open_store(loaded, str(tmp_path))
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(UserError, match="nothing to evaluate on"):
        data_loss.measure(loaded, data_loss.read_text(loaded, str(tmp_path)), rows=4)
    (tmp_path / "other.txt").write_text("")  # two documents of an end token each
    with pytest.raises(UserError, match="each document is one token"):
        data_loss.measure(
            loaded, data_loss.read_text(loaded, str(tmp_path)), rows=4, documents=True
        )
