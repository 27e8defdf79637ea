"""Loss, perplexity and bits per byte of a token store or of text, overall and by source."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from data_pipelines.batches.packed import eval_batches
from data_pipelines.store.statistics import statistics
from data_pipelines.store.store import TokenStore
from prts_jax.errors import UserError
from prts_jax.evaluate.loaded import LoadedModel
from prts_jax.evaluate.memory import out_of_memory, rows_of_batch
from prts_jax.evaluate.perplexity import LARGEST_EXPONENT, Perplexity, make_evaluator
from prts_jax.evaluate.scores import ALL, BITS, LOSS, Scores
from prts_jax.evaluate.store_tokenizer import check_store_tokenizer, open_store_of
from prts_jax.evaluate.text_store import open_text
from prts_jax.evaluate.tokenizer import tokenizer_of
from prts_jax.mesh import axis_size

IMPORT_LENGTH = 2048
"""Most tokens of a row by default, of an imported model: it may allow far more positions than it
was trained on, and perplexity depends on the length."""


@dataclass(frozen=True)
class Data:
    """Tokens to predict.

    Attributes:
      store: the tokens.
      tokens: int64 [sources], tokens of each source.
      text_bytes: int64 [sources], UTF-8 bytes of each source's text; None if unknown.
      text: identifies the text independently of the tokenizer.
    """

    store: TokenStore
    tokens: np.ndarray
    text_bytes: np.ndarray | None
    text: str


def open_store(loaded: LoadedModel, directory: str = "") -> Data:
    """Opens a token store, packed or not, by default the run's validation store.

    Raises:
      UserError: there is no store, or its tokenizer is not the model's.
    """
    config = loaded.lineage.config["data"]
    directory = directory or config["validation"]
    if not directory:
        raise UserError(
            "--perplexity: the checkpoint names no validation store; give --data=DIR or --text"
        )
    store = open_store_of(directory, loaded.model)
    check_store_tokenizer(loaded.path, loaded.lineage, store)
    counted = statistics(directory)
    # A packed store predicts answers only, whose bytes are not counted.
    text_bytes = None if store.packed else counted.text_bytes
    return Data(store, counted.tokens, text_bytes, store.fingerprint)


def read_text(loaded: LoadedModel, path: str, tokenizer: str = "") -> Data:
    """Tokenizes a text file or a folder of them, by default with the checkpoint's own tokenizer.

    Raises:
      UserError: there is no text, or no tokenizer that fits the model.
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
      data: the tokens.
      rows: most rows of a batch; fewer where they would not fit in memory.
      length: tokens of a row; 0 for the store's packed length, or the model's training length, or,
        for an import that was not trained here, the longest that it allows up to `IMPORT_LENGTH`.
      documents: whether documents in a row are separated and their first tokens not predicted;
        None for the model's training setting. Documents of a packed store always are.

    Returns:
      The object of `prts eval --json`: loss (nats per token), perplexity, tokens (predicted),
      bits_per_byte (None if the bytes are unknown), the same by source in per_source, and length
      (tokens of a row). Then the losses and bits of each row, of all sources and of each.

    Raises:
      UserError: every document is one token, or a row does not fit in memory.
    """
    config = loaded.lineage.config["data"]
    trained = loaded.lineage.row_length or min(loaded.length, IMPORT_LENGTH)
    length = min(length or data.store.packed or trained, max(data.store.tokens - 1, 1))
    separated = bool(config.get("documents", False)) if documents is None else documents
    shares = axis_size(loaded.mesh, "batch")
    rows = min(rows, -(-data.store.tokens // length))
    fitting = rows_of_batch(loaded.model, rows, length, shares)
    batches = eval_batches(data.store, length, fitting, documents=separated)
    with jax.set_mesh(loaded.mesh), out_of_memory("give a smaller --length or --batch"):
        evaluate = make_evaluator(loaded.model, loaded.compute, batches, loaded.mesh)
        result = evaluate(loaded.params)
    if not result.tokens:
        raise UserError(
            f"{data.store.directory}: nothing to predict: each document is one token; give text"
        )
    identity = f"{data.store.fingerprint} {length} {separated}"
    requests = hashlib.sha256(identity.encode()).hexdigest()
    return _summary(result, data) | {"length": length}, _scores(result, data, requests)


def _summary(result: Perplexity, data: Data) -> dict[str, Any]:
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
    """Returns the factor from bits per token to bits per byte (as the Pile, arXiv 2101.00027).

    End tokens count as tokens; a first token that is not predicted counts with the mean loss.
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
    scores = []
    for name, columns in named.items():
        losses = result.row_losses[:, columns].sum(axis=1)
        tokens = result.row_tokens[:, columns].sum(axis=1)
        predicted = tokens > 0
        losses, tokens = losses[predicted], tokens[predicted]
        # Losses are comparable for equal tokens, bits for equal text.
        scores.append(Scores(LOSS, name, losses, tokens, requests, requests))
        tokens_per_byte = _tokens_per_byte(data, columns)
        if tokens_per_byte is not None:
            text_bytes = tokens / tokens_per_byte
            bits = losses / math.log(2)
            scores.append(Scores(BITS, name, bits, text_bytes, data.text, requests))
    return scores
