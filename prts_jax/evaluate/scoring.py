"""Log-likelihoods of continuations, many at a time, on the mesh."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from prts_jax.evaluate.buckets import bucket
from prts_jax.evaluate.loaded import LoadedModel
from prts_jax.feed import place
from prts_jax.mesh import axis_size
from prts_jax.model.architecture import logits
from prts_jax.model.loss import token_losses

FIELDS = ("tokens", "targets", "weights")

Request = tuple[Sequence[int], Sequence[int]]
"""Tokens of a context, at least one, and of its continuation, at least one."""


class Scorer:
    """Scores with one model; compiled once for each bucket of lengths."""

    def __init__(self, loaded: LoadedModel, rows: int, max_length: int) -> None:
        """Takes a model.

        Args:
          loaded: the model on its mesh.
          rows: of a batch; rounded up to what its data-parallel devices share.
          max_length: tokens of a row at most; longer ones lose their beginning.
        """
        parts = axis_size(loaded.mesh, "batch")
        self._loaded, self._rows = loaded, -(-rows // parts) * parts
        self._max_length = max_length
        replicated = NamedSharding(loaded.mesh, PartitionSpec())
        self._score = jax.jit(self._scores, out_shardings=replicated)

    def score(
        self, requests: Sequence[Request], done: Callable[[int], None] = lambda count: None
    ) -> list[tuple[float, bool]]:
        """Scores continuations, the longest first.

        Args:
          requests: what is scored.
          done: told how many a batch has scored.

        Returns:
          For each, in order: the sum of its tokens' log-likelihoods, and whether each of them is
          what greedy decoding would have chosen.
        """
        rows = [self._row(context, continuation) for context, continuation in requests]
        order = sorted(range(len(rows)), key=lambda at: (-len(rows[at][0]), rows[at][0]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        for start in range(0, len(order), self._rows):
            places = order[start : start + self._rows]
            summed, greedy = self._batch([rows[at] for at in places])
            for row, at in enumerate(places):
                found[at] = float(summed[row]), bool(greedy[row])
            done(len(places))
        return found

    def _row(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[list[int], int]:
        """Returns the row's tokens, cut from the left, and how many of them are scored."""
        kept = [*context, *continuation][-(self._max_length + 1) :]
        return kept, min(len(continuation), len(kept) - 1)

    def _batch(self, rows: Sequence[tuple[list[int], int]]) -> tuple[np.ndarray, np.ndarray]:
        length = bucket(max(len(tokens) for tokens, _ in rows) - 1, self._max_length)
        shape = (self._rows, length)
        arrays = {name: np.zeros(shape, np.int32) for name in FIELDS}
        for row, (tokens, scored) in enumerate(rows):
            stop = len(tokens) - 1
            arrays["tokens"][row, :stop] = tokens[:-1]
            arrays["targets"][row, :stop] = tokens[1:]
            arrays["weights"][row, stop - scored : stop] = 1
        with jax.set_mesh(self._loaded.mesh):
            batch = place(
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
