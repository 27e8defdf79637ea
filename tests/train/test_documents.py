"""Documents that share rows are trained on and evaluated as if each were alone."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.batches.loader import EvalBatches, TrainBatches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.store import TokenStore
from prts_jax.evaluate.perplexity import make_evaluator
from prts_jax.mesh import make_mesh
from prts_jax.model.architecture import declare, logits
from prts_jax.model.initialise import init_params
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step
from tests.train import tiny
from tests.train.tiny import read_lines

LENGTH, ROWS = 16, 8
NO_CLIP = tiny.run_config(optimizer__clip=0.0)


@pytest.fixture(scope="module")
def documents() -> list[tuple[np.ndarray, int]]:
    """129 tokens: documents shorter and longer than a row, empty ones, and ones of one token."""
    random = np.random.default_rng(0)
    sizes = [5, 0, 1, 40, 3, 9, 16, 1, 1, 22, 14, 2, 15]
    return [(random.integers(0, tiny.MODEL.vocab, n), i % 2) for i, n in enumerate(sizes)]


@pytest.fixture(scope="module")
def store(documents, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return tiny.write_store(tmp_path_factory.mktemp("stores") / "store", documents=documents)


def fresh_params():
    return init_params(declare(tiny.MODEL), tiny.MODEL.layers, "paper", seed=0)


@pytest.fixture(scope="module")
def alone(documents) -> list[tuple[int, float]]:
    """(source, loss) of every target that does not begin a document.

    What lies of a document in a row, with the target after it, is a sequence of its own.
    """
    tokens = np.concatenate([tokens for tokens, _ in documents])
    pieces = []
    begin = 0
    for document, source in documents:
        end = begin + len(document)
        for row in range(0, len(tokens) - 1, LENGTH):
            first, stop = max(begin, row), min(end, row + LENGTH + 1)
            if stop - first > 1:
                pieces.append((tokens[first:stop], source))
        begin = end
    padded = np.zeros((len(pieces), LENGTH), np.int32)
    for row, (piece, _) in enumerate(pieces):
        padded[row, : len(piece) - 1] = piece[:-1]
    model = jax.jit(lambda params, tokens: logits(params, tokens, tiny.MODEL, NO_CLIP.compute))
    scores = model(fresh_params(), jnp.asarray(padded))
    actual = []
    for row, (piece, source) in zip(np.asarray(scores, np.float64), pieces, strict=True):
        for spot, target in enumerate(piece[1:]):
            actual.append((source, math.log(np.exp(row[spot]).sum()) - row[spot][target]))
    return actual


def means(losses: list[tuple[int, float]]) -> tuple[float, dict[str, float]]:
    by_source = {
        name: float(np.mean([loss for source, loss in losses if source == number]))
        for number, name in enumerate(tiny.SOURCES)
    }
    return float(np.mean([loss for _, loss in losses])), by_source


def test_a_steps_loss_is_that_of_the_documents_alone(store, alone):
    config = tiny.run_config(optimizer__clip=0.0, train__accumulation=2)
    mesh = make_mesh(config.mesh)
    optimizer = make_optimizer(config)
    params = jax.device_put(
        fresh_params(), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    )
    state = fresh_state(params, optimizer, mesh)
    step = make_train_step(config, optimizer, sources=len(tiny.SOURCES))
    batches = TrainBatches(store, ReadOrder(LENGTH, ROWS, seed=0, documents=True))
    _, metrics = step(state, {k: jnp.asarray(v) for k, v in batches.rows(0, 0, ROWS).items()})

    loss, by_source = means(alone)
    assert float(metrics.loss) == pytest.approx(loss, rel=1e-6)
    assert float(metrics.source_tokens.sum()) == len(alone) < ROWS * LENGTH
    actual = metrics.source_losses / metrics.source_tokens
    assert actual.tolist() == pytest.approx(list(by_source.values()), rel=1e-6)


def test_so_is_the_loss_of_an_evaluation(store, alone):
    batches = EvalBatches(store, LENGTH, batch=3, documents=True)
    evaluate = make_evaluator(tiny.MODEL, NO_CLIP.compute, batches, make_mesh(NO_CLIP.mesh))
    actual = evaluate(fresh_params())
    loss, by_source = means(alone)
    assert actual.loss == pytest.approx(loss, rel=1e-6)
    assert actual.tokens == len(alone)
    losses = {name: mean for name, (mean, _) in actual.by_source.items()}
    assert losses == pytest.approx(by_source, rel=1e-6)


def test_a_run_keeps_documents_apart_when_it_trains_and_when_it_evaluates(base, run, tmp_path):
    lines, across = run(tmp_path, train__steps=1, data__documents=True), read_lines(base.workdir)
    assert lines[0]["validation_loss"] != across[0]["validation_loss"]
    assert lines[1]["loss"] != across[1]["loss"]
    assert lines[1]["flops"] == across[1]["flops"]
