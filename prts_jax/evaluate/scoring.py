"""Log-likelihoods of continuations, in batches on the mesh."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prts_jax.evaluate.loaded import LoadedModel
from prts_jax.evaluate.memory import rows_of_batch
from prts_jax.feed import shard_batch
from prts_jax.mesh import axis_size
from prts_jax.model.architecture import logits
from prts_jax.model.loss import token_losses

FIELDS = ("tokens", "targets", "weights")

SMALLEST_BUCKET = 32

Request = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context and of its continuation, at least one each."""


def bucket(length: int, largest: int = 0) -> int:
    """Returns the smallest of 32, 48, 64, 96, 128, 192, … that holds `length`.

    Rounding lengths up keeps the number of compiled programs small; beyond the smallest bucket at
    most a third of a row is padding. `largest` is an upper limit, if it holds the length.

    >>> [bucket(n) for n in (1, 33, 64, 65, 1000)]
    [32, 48, 64, 96, 1024]
    """
    size = SMALLEST_BUCKET
    while size < length:
        size = size * 3 // 2 if size & (size - 1) == 0 else size // 3 * 4
    return min(size, largest) if length <= largest else size


class Scorer:
    """Scores continuations with one model; compiles one program per bucket of lengths."""

    def __init__(self, loaded: LoadedModel, rows: int, max_length: int) -> None:
        """Sets up the scoring program; rows above `max_length` tokens lose their beginning."""
        self._loaded, self._rows, self._max_length = loaded, rows, max_length
        self._shares = axis_size(loaded.mesh, "batch")
        replicated = NamedSharding(loaded.mesh, PartitionSpec())
        self._score = jax.jit(self._scores, out_shardings=replicated)

    def score(
        self, requests: Sequence[Request], done: Callable[[int], None] = lambda count: None
    ) -> list[tuple[float, bool]]:
        """Scores continuations, longest first; `done` is called with the number of each batch.

        Returns for each request the sum of its tokens' log-likelihoods in nats, and whether greedy
        decoding would have chosen all of them.
        """
        rows = [self._row(context, continuation) for context, continuation in requests]
        order = sorted(range(len(rows)), key=lambda at: (-len(rows[at][0]), rows[at][0]))
        scores: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        while order:
            length = bucket(len(rows[order[0]][0]) - 1, self._max_length)
            most = min(self._rows, len(rows))
            count = rows_of_batch(self._loaded.model, most, length, self._shares)
            indices, order = order[:count], order[count:]
            summed, greedy = self._batch([rows[at] for at in indices], (count, length))
            for row, at in enumerate(indices):
                scores[at] = float(summed[row]), bool(greedy[row])
            done(len(indices))
        return scores

    def _row(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], int]:
        """Returns the row's tokens, cut at the left, and the number of scored ones."""
        kept = [*context, *continuation][-(self._max_length + 1) :]
        return kept, min(len(continuation), len(kept) - 1)

    def _batch(
        self, rows: Sequence[tuple[list[int], int]], shape: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray]:
        arrays = {name: np.zeros(shape, np.int32) for name in FIELDS}
        for row, (tokens, scored) in enumerate(rows):
            stop = len(tokens) - 1
            arrays["tokens"][row, :stop] = tokens[:-1]
            arrays["targets"][row, :stop] = tokens[1:]
            arrays["weights"][row, stop - scored : stop] = 1
        with jax.set_mesh(self._loaded.mesh):
            batch = shard_batch(
                self._loaded.mesh,
                lambda start, stop: {name: x[start:stop] for name, x in arrays.items()},
                shape,
                FIELDS,
            )
            summed, greedy = jax.device_get(self._score(self._loaded.params, batch))
        return summed, greedy

    def _scores(
        self, params: dict[str, jax.Array], batch: dict[str, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        model, compute = self._loaded.model, self._loaded.compute
        logits_BxSxV = logits(params, batch["tokens"], model, compute)
        losses_BxS = token_losses(logits_BxSxV, batch["targets"])
        right_BxS = jnp.argmax(logits_BxSxV, axis=-1) == batch["targets"]
        scored_BxS = batch["weights"] > 0
        summed_B = -jnp.sum(jnp.where(scored_BxS, losses_BxS, 0), axis=1)
        return summed_B, jnp.all(right_BxS | ~scored_BxS, axis=1)
