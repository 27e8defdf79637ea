"""Inputs of the model beside tokens: documents that share a row, and gates of what is new."""

from collections.abc import Mapping
from typing import NamedTuple

import jax


class Documents(NamedTuple):
    """The document of each token of a row.

    Tokens attend to earlier ones of their own segment, and rotary embeddings turn by position.

    Attributes:
      segment_ids_BxS: int32; only equality within a row counts.
      positions_BxS: int32, the position within the document: 0 at its first token.
    """

    segment_ids_BxS: jax.Array
    positions_BxS: jax.Array


def documents_of(batch: Mapping[str, jax.Array]) -> Documents | None:
    """Returns the documents of a batch, or None if its rows are not divided into documents.

    Args:
      batch: of `data_pipelines.batches.loader`.
    """
    if "segment_ids" not in batch:
        return None
    return Documents(batch["segment_ids"], batch["positions"])


class Cache(NamedTuple):
    """Keys (rotated) and values of earlier tokens by position, T of them at most.

    Attributes:
      k_LxBxKxTxD: in the dtype of the activations.
      v_LxBxKxTxD: the same.
    """

    k_LxBxKxTxD: jax.Array
    v_LxBxKxTxD: jax.Array


class Cached(NamedTuple):
    """The positions of tokens in rows whose earlier tokens are in a cache.

    Attributes:
      cache: of the earlier tokens.
      positions_BxS: int32, of these tokens, in [0, T).
      scored_B: int32 in [0, S), the index of the token whose successor is predicted.
    """

    cache: Cache
    positions_BxS: jax.Array
    scored_B: jax.Array


class Gates(NamedTuple):
    """Factors c on the outputs of new blocks, `Y = X + f(Norm(X)) ⊙ c` (arXiv 2405.15319, App. A).

    At 0 the model computes the same function as its source; 1 is open. None is open everywhere and
    costs nothing. Each factor multiplies values before they are summed.

    Attributes:
      layers_L: float32, of both outputs of a layer.
      embed_E: float32, of the token embedding and of every output into the residual stream.
      mlp_M: float32, of the hidden units of the MLP.
      heads_H: float32, of what each query head attends to.
    """

    layers_L: jax.Array | None = None
    embed_E: jax.Array | None = None
    mlp_M: jax.Array | None = None
    heads_H: jax.Array | None = None
