"""Loss, perplexity and bits per byte of a token store or of text, for each of its sources."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from data_pipelines.batches.packed import eval_batches
from data_pipelines.store.statistics import statistics
from data_pipelines.store.store import TokenStore, read_index
from prts_jax.errors import UserError
from prts_jax.evaluate.loaded import LoadedModel
from prts_jax.evaluate.perplexity import LARGEST_EXPONENT, Perplexity, make_evaluator
from prts_jax.evaluate.scores import ALL, BITS, LOSS, Scores
from prts_jax.evaluate.text import tokenizer_of
from prts_jax.evaluate.text_store import open_text
from prts_jax.mesh import axis_size


@dataclass(frozen=True)
class Data:
    """Tokens to predict.

    Attributes:
      store: the tokens.
      tokens: of each source, int64 [sources].
      text_bytes: UTF-8 bytes of each source's text; None where nothing says.
      text: says which text it is, whatever the tokenizer.
    """

    store: TokenStore
    tokens: np.ndarray
    text_bytes: np.ndarray | None
    text: str


def open_store(loaded: LoadedModel, directory: str = "") -> Data:
    """Opens a token store.

    Args:
      loaded: the model that predicts it.
      directory: of the store, packed or not; "": the run's validation store.

    Raises:
      UserError: no store, or one of another tokenizer than the model's.
    """
    config = loaded.lineage.config["data"]
    directory = directory or config["validation"]
    if not directory:
        raise UserError(
            "--perplexity: the checkpoint names no validation store; give --data=DIR or --text"
        )
    store = TokenStore.open(directory)
    if store.vocab_size > loaded.model.vocab:
        raise UserError(
            f"{directory}: its tokenizer has {store.vocab_size} entries and the model "
            f"{loaded.model.vocab}; give a store made with the model's tokenizer"
        )
    known = _trained_on(loaded)
    if known and store.tokenizer != known:
        raise UserError(
            f"{directory}: its tokens are of another tokenizer (sha256 {store.tokenizer[:12]}) "
            f"than {loaded.path} was trained with ({known[:12]}); give a store made with the "
            "model's tokenizer"
        )
    counted = statistics(directory)
    # Of instructions only the answers are predicted, and nobody counted their bytes.
    text_bytes = None if store.packed else counted.text_bytes
    return Data(store, counted.tokens, text_bytes, store.fingerprint)


def _trained_on(loaded: LoadedModel) -> str:
    """Returns the sha256 of a run's tokenizer; "" of an imported model, or if its store is gone."""
    if loaded.lineage.imported:
        return ""  # it may carry the same tokenizer in another form
    try:
        sha256: str = read_index(loaded.lineage.config["data"]["train"])["tokenizer_sha256"]
    except UserError:
        return ""
    return sha256


def read_text(loaded: LoadedModel, path: str, tokenizer: str = "") -> Data:
    """Tokenizes a text file, or a folder of them.

    Args:
      loaded: the model that predicts it.
      path: of the text.
      tokenizer: folder or file; "" for the checkpoint's own.

    Raises:
      UserError: no text, or no tokenizer that fits the model.
    """
    opened = tokenizer_of(loaded.path, loaded.lineage, tokenizer)
    text = open_text(path, opened.encode, opened.eos)
    sizes = np.array(text.text_bytes, np.int64)
    return Data(cast(TokenStore, text), text.tokens_per_source, sizes, text.text_digest)


def measure(
    loaded: LoadedModel, data: Data, rows: int, length: int = 0, documents: bool | None = None
) -> tuple[dict[str, Any], list[Scores]]:
    """Predicts every token after the first, on all devices of the model's mesh.

    Args:
      loaded: the model.
      data: what is predicted.
      rows: of a batch; rounded up to what the data-parallel devices share.
      length: tokens of a row; 0: what the store was packed with, or the model trained with.
      documents: whether documents in a row are kept apart, and their first tokens not predicted;
        None: as the model was trained. In a packed store they always are.

    Returns:
      Loss (nats a token), perplexity, tokens (predicted) and bits_per_byte (None where the bytes
      are not known), and the same for each source in per_source; and the rows' losses and bits, of
      all sources and of each.

    Raises:
      UserError: there is nothing to predict.
    """
    config = loaded.lineage.config["data"]
    length = min(length or data.store.packed or loaded.length, max(data.store.tokens - 1, 1))
    apart = bool(config.get("documents", False)) if documents is None else documents
    parts = axis_size(loaded.mesh, "batch")
    batches = eval_batches(data.store, length, -(-rows // parts) * parts, documents=apart)
    with jax.set_mesh(loaded.mesh):
        evaluate = make_evaluator(loaded.model, loaded.compute, batches, loaded.mesh)
        result = evaluate(loaded.params)
    if not result.tokens:
        raise UserError(
            f"{data.store.directory}: nothing to predict: each document is one token; give text"
        )
    asked = f"{data.store.fingerprint} {length} {apart}"
    requests = hashlib.sha256(asked.encode()).hexdigest()
    return _found(result, data), _scores(result, data, requests)


def _found(result: Perplexity, data: Data) -> dict[str, Any]:
    everything = range(len(result.sources))
    per_source = {
        name: _measures(loss, tokens, _tokens_per_byte(data, [result.sources.index(name)]))
        for name, (loss, tokens) in result.by_source.items()
    }
    whole = _measures(result.loss, result.tokens, _tokens_per_byte(data, everything))
    return {**whole, "per_source": per_source}


def _measures(loss: float, tokens: int, tokens_per_byte: float | None) -> dict[str, Any]:
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, LARGEST_EXPONENT)),
        "tokens": tokens,
        "bits_per_byte": None if tokens_per_byte is None else loss / math.log(2) * tokens_per_byte,
    }


def _tokens_per_byte(data: Data, sources: Sequence[int]) -> float | None:
    """Bits per byte are bits a token times this (as the Pile, arXiv 2101.00027).

    End tokens are tokens; a document's first token counts as the others cost, where it is not
    predicted.
    """
    if data.text_bytes is None:
        return None
    size = int(data.text_bytes[list(sources)].sum())
    return float(data.tokens[list(sources)].sum()) / size if size else None


def _scores(result: Perplexity, data: Data, requests: str) -> list[Scores]:
    everything = list(range(len(result.sources)))
    named = {ALL: everything} | {
        name: [result.sources.index(name)] for name in result.by_source if len(result.sources) > 1
    }
    made = []
    for name, columns in named.items():
        losses = result.row_losses[:, columns].sum(axis=1)
        tokens = result.row_tokens[:, columns].sum(axis=1)
        predicted = tokens > 0
        losses, tokens = losses[predicted], tokens[predicted]
        # Losses of other tokens do not compare; bits of the same text do.
        made.append(Scores(LOSS, name, losses, tokens, requests, requests))
        tokens_per_byte = _tokens_per_byte(data, columns)
        if tokens_per_byte is not None:
            text_bytes = tokens / tokens_per_byte
            bits = losses / math.log(2)
            made.append(Scores(BITS, name, bits, text_bytes, data.text, requests))
    return made
