"""The data of a stage: opens and checks its training and validation batches."""

import dataclasses

import jax
from jax.sharding import Mesh

from data_pipelines.batches.loader import EvalBatches, TrainBatches
from data_pipelines.batches.mixture import train_batches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.batches.packed import check_packed, eval_batches
from data_pipelines.store.several import Stores, open_stores
from data_pipelines.store.store import TokenStore
from prts_jax.config import RunConfig
from prts_jax.errors import UserError
from prts_jax.evaluate.store_tokenizer import check_same_tokenizer
from prts_jax.feed import shard_batch
from prts_jax.mesh import axis_size, check_length, use_mesh


def training_batches(config: RunConfig, batch_parts: int) -> TrainBatches:
    """Opens the training store of a stage, or its stores.

    Args:
      config: config of the stage.
      batch_parts: number of data-parallel devices, which split each batch.

    Raises:
      UserError: `data.train` is empty, the store does not fit the model, or the batch size is not
        divisible.
    """
    data = config.data
    if not data.train:
        raise UserError(
            "config.data.train: is empty; give the directory of a token store, or several "
            "with shares, as in 'DIR,0.7;DIR,0.3'"
        )
    micro_rows = batch_parts * config.train.accumulation
    if data.batch % micro_rows:
        raise UserError(
            f"config.data.batch: {data.batch} does not divide among {batch_parts} data-parallel "
            f"devices × train.accumulation={config.train.accumulation}; make it a multiple of "
            f"{micro_rows}"
        )
    order = ReadOrder.of(dataclasses.asdict(data))
    stores = open_stores(data.train)
    _check_vocabulary(stores, config)
    return train_batches(stores, order)


def batch_at(mesh: Mesh, batches: TrainBatches, position: int) -> dict[str, jax.Array]:
    """Returns the global training batch at a position in tokens: arrays [batch, length] by name."""
    return shard_batch(
        mesh,
        lambda start, stop: batches.rows(position, start, stop),
        (batches.order.batch, batches.order.length),
        batches.fields,
    )


def evaluation_batches(
    config: RunConfig, batch_parts: int, trained_on: TokenStore
) -> EvalBatches | None:
    """Opens the validation store of a stage; returns None if it has none.

    Args:
      config: config of the stage.
      batch_parts: number of data-parallel devices, which split each batch.
      trained_on: the training store; both stores must have the same tokenizer.

    Raises:
      UserError: the store does not fit the model or the training store, or the batch size is not
        divisible.
    """
    data, evaluation = config.data, config.evaluation
    if not data.validation:
        return None
    rows = evaluation.batch or data.batch
    if rows % batch_parts:
        raise UserError(
            f"config.evaluation.batch: {rows} does not divide among {batch_parts} data-parallel "
            f"devices; make it a multiple of {batch_parts}"
        )
    store = TokenStore.open(data.validation)
    _check_vocabulary(store, config)
    check_same_tokenizer("config.data.validation", store, trained_on)
    check_packed(store, data.instructions)
    return eval_batches(store, data.length, rows, evaluation.tokens or None, data.documents)


def check_batches(config: RunConfig) -> TokenStore | Stores:
    """Checks the stores and batch sizes of a later stage before the run starts.

    Returns:
      The training store.

    Raises:
      UserError: see `training_batches` and `evaluation_batches`.
    """
    with use_mesh(config.mesh) as mesh:
        parts = axis_size(mesh, "batch")
        check_length(mesh, config.data.length, config.compute.loss_chunks)
    store = training_batches(config, parts).store
    evaluation_batches(config, parts, store)
    return store


def _check_vocabulary(store: TokenStore | Stores, config: RunConfig) -> None:
    if store.vocab_size > config.model.vocab:
        raise UserError(
            f"config.model.vocab: {config.model.vocab} is less than the {store.vocab_size} "
            f"entries of the tokenizer of {store.directory}; raise it, or give another store"
        )
