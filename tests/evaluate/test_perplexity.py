"""Loss per source over a store against a brute force that takes one window at a time."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.batches.loader import EvalBatches
from data_pipelines.store.store import TokenStore
from prts_jax.evaluate.perplexity import Perplexity, make_evaluator
from prts_jax.mesh import make_mesh
from prts_jax.model.architecture import declare, logits
from prts_jax.model.initialise import init_params
from tests.train import tiny

CONFIG = tiny.run_config()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    # 301 targets: no multiple of the length, nor of a batch.
    return tiny.write_store(tmp_path_factory.mktemp("stores") / "validation", 302, seed=1)


@pytest.fixture(scope="module")
def params():
    return init_params(declare(tiny.MODEL), tiny.MODEL.layers, "paper", seed=0)


def evaluate(params, store, batch=4, length=16, limit=None) -> Perplexity:
    batches = EvalBatches(store, length, batch, limit)
    return make_evaluator(tiny.MODEL, CONFIG.compute, batches, make_mesh(CONFIG.mesh))(params)


def brute_force(params, store, length=16, limit=None) -> list[tuple[int, float]]:
    """(source, loss) of every target, from the store's files and a log-softmax in float64."""
    folder = Path(store.directory)
    tokens, sources = [], []
    for shard in json.loads((folder / "index.json").read_text())["shards"]:
        tokens.append(np.fromfile(folder / f"{shard['name']}.tokens", np.uint16))
        ends = np.fromfile(folder / f"{shard['name']}.ends", np.uint64).astype(np.int64)
        ids = np.fromfile(folder / f"{shard['name']}.sources", np.uint8)
        sources.append(np.repeat(ids, np.diff(ends, prepend=0)))
    tokens, sources = np.concatenate(tokens), np.concatenate(sources)
    count = len(tokens) - 1 if limit is None else limit
    window = jax.jit(lambda p, t: logits(p, t, tiny.MODEL, CONFIG.compute))
    actual = []
    for first in range(0, count, length):
        inputs = np.zeros((1, length), np.int32)
        given = tokens[first : min(first + length, len(tokens) - 1)]
        inputs[0, : len(given)] = given
        scores = np.asarray(window(params, jnp.asarray(inputs)), np.float64)[0]
        for spot in range(min(length, count - first)):
            row = scores[spot] - scores[spot].max()
            target = first + spot + 1
            loss = math.log(np.exp(row).sum()) - row[tokens[target]]
            actual.append((int(sources[target]), loss))
    return actual


@pytest.mark.parametrize("limit", [None, 100], ids=["the whole store", "its first 100 targets"])
def test_loss_by_source_equals_brute_force(params, store, limit):
    actual = evaluate(params, store, limit=limit)
    expected = brute_force(params, store, limit=limit)
    assert actual.tokens == len(expected) == (limit or store.tokens - 1)
    assert actual.loss == pytest.approx(np.mean([loss for _, loss in expected]), rel=1e-6)
    assert list(actual.by_source) == list(tiny.SOURCES)
    for source, name in enumerate(tiny.SOURCES):
        losses = [loss for of, loss in expected if of == source]
        loss, tokens = actual.by_source[name]
        assert tokens == len(losses)
        assert loss == pytest.approx(np.mean(losses), rel=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_loss_is_independent_of_the_batch_size(params, store, batch):
    one, other = evaluate(params, store), evaluate(params, store, batch=batch)
    assert other.tokens == one.tokens
    assert other.loss == pytest.approx(one.loss, rel=1e-6)
    assert [tokens for _, tokens in other.by_source.values()] == [
        tokens for _, tokens in one.by_source.values()
    ]


def test_a_source_without_tokens_is_left_out(params, tmp_path):
    documents = [(np.arange(20), 1), (np.arange(20), 1)]
    actual = evaluate(params, tiny.write_store(tmp_path / "verse", documents=documents))
    assert actual.by_source == {"verse": (actual.loss, 39)}


def test_metrics_are_valid_json():
    losses, tokens = np.array([[math.log(8), 0], [0, 6000]]), np.array([[1, 0], [0, 2]])
    actual = Perplexity(tiny.SOURCES, losses, tokens)
    line = json.loads(json.dumps(actual.metrics(), allow_nan=False))
    assert line["validation_loss"] == pytest.approx((math.log(8) + 6000) / 3)
    assert math.isfinite(line["validation_perplexity"])
    assert line["validation_perplexity/prose"] == pytest.approx(8.0)


def test_blocks_are_the_means_of_equal_parts_of_the_rows_that_predict_something():
    losses, tokens = np.array([[2.0], [6.0], [0.0], [9.0]]), np.array([[1.0], [3.0], [0.0], [3.0]])
    line = Perplexity(("web",), losses, tokens).metrics(blocks=2)
    blocks = {key: loss for key, loss in line.items() if key.startswith("validation_block/")}
    assert blocks == {"validation_block/000": 8 / 4, "validation_block/001": 3.0}
