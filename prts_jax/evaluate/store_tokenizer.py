"""Checks that the tokens of a store are of the model's tokenizer, or of another store's."""

import hashlib

from data_pipelines.store.index import TOKENIZER_FILES, read_index
from data_pipelines.store.several import Stores, first_store
from data_pipelines.store.store import TokenStore
from prts_jax.checkpoint import layout
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.tokenizer import check_tokenizer
from prts_jax.config import ModelConfig
from prts_jax.errors import UserError
from prts_jax.evaluate.tokenizer import open_tokenizer, tokenizer_file
from prts_jax.paths import as_path


def open_store_of(directory: str, model: ModelConfig) -> TokenStore:
    """Opens a store whose token ids the model has.

    Raises:
      UserError: there is no store, or its tokenizer has more entries than the model.
    """
    store = TokenStore.open(directory)
    if store.vocab_size > model.vocab:
        raise UserError(
            f"{directory}: its tokenizer has {store.vocab_size} entries and the model "
            f"{model.vocab}; give a store made with the model's tokenizer"
        )
    return store


def check_store_tokenizer(
    checkpoint: str, lineage: Lineage, store: TokenStore | Stores, way_out: str = ""
) -> None:
    """Checks that a store has the tokenizer that came with the weights, or that trained them.

    Files that differ may hold the same tokenizer (tokenizer.model and tokenizer.json): then their
    pieces are compared, id by id. A checkpoint without a known tokenizer takes every store.
    `way_out` ends the message, where a store of another tokenizer can be allowed.

    Raises:
      UserError: the store has another tokenizer.
    """
    check_tokenizer(checkpoint, lineage)
    folder = as_path(checkpoint) / layout.TOKENIZER
    carried = [folder / name for name in TOKENIZER_FILES if (folder / name).is_file()]
    known = {hashlib.sha256(file.read_bytes()).hexdigest() for file in carried}
    trained_on = _trained_on(lineage)
    if store.tokenizer in known | {trained_on}:
        return
    train = first_store(lineage.config["data"]["train"])
    ours = tokenizer_file(str(folder)) or (tokenizer_file(train) if trained_on else "")
    theirs = tokenizer_file(store.directory)
    if not trained_on and not (ours and theirs):
        return
    if ours and theirs and _same_pieces(ours, theirs):
        return
    digest = trained_on or sorted(known)[0]
    raise UserError(
        f"{store.directory}: its tokens are of another tokenizer (sha256 {store.tokenizer[:12]}) "
        f"than {checkpoint} was trained with ({digest[:12]}); give a store made with the model's "
        f"tokenizer{way_out}"
    )


def check_same_tokenizer(
    key: str, store: TokenStore | Stores, trained_on: TokenStore | Stores
) -> None:
    """Checks that a store, which `key` names, has the tokenizer of the store that a run trains on.

    Raises:
      UserError: the store has another tokenizer.
    """
    if store.tokenizer == trained_on.tokenizer:
        return
    ours, theirs = tokenizer_file(trained_on.directory), tokenizer_file(store.directory)
    if not (ours and theirs and _same_pieces(ours, theirs)):
        raise UserError(
            f"{key}: the tokens of {store.directory} are of another tokenizer (sha256 "
            f"{store.tokenizer[:12]}) than those of {trained_on.directory} "
            f"({trained_on.tokenizer[:12]}); cache both with the same --tokenizer"
        )


def _trained_on(lineage: Lineage) -> str:
    """Returns the sha256 of a run's tokenizer; "" if it did not train, or its store is missing."""
    if lineage.row_length is None:
        return ""
    try:
        return str(read_index(first_store(lineage.config["data"]["train"]))["tokenizer_sha256"])
    except UserError:
        return ""


def _same_pieces(ours: str, theirs: str) -> bool:
    one, other = open_tokenizer(ours).pieces, open_tokenizer(theirs).pieces
    return all(one[at] == other[at] for at in one.keys() & other.keys())
