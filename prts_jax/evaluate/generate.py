"""Generation with a key-value cache: the prompt in one step, then token by token."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.errors import UserError
from prts_jax.evaluate.scoring import bucket
from prts_jax.model.architecture import empty_cache, next_logits
from prts_jax.model.inputs import Cache, Cached


@dataclass(frozen=True)
class Sampling:
    """The choice of the next token.

    Attributes:
      temperature: 0 for the likeliest token; else tokens are drawn from logits / temperature.
      top_p: tokens are drawn from the likeliest whose probabilities first reach this sum (nucleus
        sampling, arXiv 1904.09751, section 3.1); 1 for all.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError for values outside their ranges."""
        if not 0 <= self.temperature < float("inf"):
            raise UserError(
                f"temperature: is {self.temperature}; it must be a number of at least 0"
            )
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p: is {self.top_p}; it must be above 0 and at most 1")
        if abs(self.seed) >= 2**63:
            raise UserError(f"seed: is {self.seed}; it must be a 64-bit integer")


GREEDY = Sampling()


class Generator:
    """Generates with one model; compiles once per bucket of lengths and number of rows."""

    def __init__(
        self,
        params: Any,
        model: ModelConfig,
        compute: ComputeConfig,
        pieces: Collection[int] | None = None,
    ) -> None:
        """Sets up the generating programs for parameters on their mesh.

        Only `pieces` are chosen, the tokenizer's ids where the model's vocabulary is padded beyond
        them; None for all.
        """
        self._params, self._model, self._compute = params, model, compute
        allowed = range(model.vocab) if pieces is None else pieces
        self._allowed_V = np.isin(np.arange(model.vocab), list(allowed))
        self._read = jax.jit(self._prefill, static_argnames="slots")
        self._next = jax.jit(self._step, donate_argnames="cache", static_argnames="sampling")
        self._first = jax.jit(self._choose, static_argnames="sampling")

    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        stop: Collection[int] = (),
        sampling: Sampling = GREEDY,
    ) -> Iterator[np.ndarray]:
        """Yields the next token of every row, [rows] int32, until all rows have ended.

        Tokens of a row after one of its `stop` ids are to be ignored.

        Raises:
          UserError: an empty prompt, or ids outside the vocabulary.
        """
        lengths = _lengths(prompts, self._model.vocab)
        width = bucket(max(lengths))
        tokens = np.zeros((len(prompts), width), np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        lengths_B = jnp.asarray(lengths, jnp.int32)
        logits, cache = self._read(
            self._params, tokens, lengths_B, slots=bucket(max(lengths) + new_tokens)
        )
        chosen = self._first(logits, 0, sampling=sampling)
        done = np.zeros(len(prompts), bool)
        for at in range(new_tokens):
            now = np.asarray(chosen)
            yield now
            done |= np.isin(now, list(stop))
            if done.all() or at + 1 == new_tokens:
                return
            chosen, cache = self._next(
                self._params, cache, chosen, lengths_B + at, at + 1, sampling=sampling
            )

    def _prefill(
        self, params: Any, tokens_BxS: jax.Array, lengths_B: jax.Array, slots: int
    ) -> tuple[jax.Array, Cache]:
        cache = empty_cache(self._model, self._compute, len(tokens_BxS), slots)
        positions = jnp.broadcast_to(jnp.arange(tokens_BxS.shape[1]), tokens_BxS.shape)
        cached = Cached(cache, positions, lengths_B - 1)
        return next_logits(params, tokens_BxS, cached, self._model, self._compute)

    def _step(
        self,
        params: Any,
        cache: Cache,
        tokens_B: jax.Array,
        positions_B: jax.Array,
        draw: jax.Array,
        sampling: Sampling,
    ) -> tuple[jax.Array, Cache]:
        cached = Cached(cache, positions_B[:, None], jnp.zeros_like(positions_B))
        logits, cache = next_logits(params, tokens_B[:, None], cached, self._model, self._compute)
        return self._choose(logits, draw, sampling), cache

    def _choose(
        self, logits_BxV: jax.Array, draw: jax.Array | int, sampling: Sampling
    ) -> jax.Array:
        return choose(jnp.where(self._allowed_V, logits_BxV, -jnp.inf), draw, sampling)


def choose(logits_BxV: jax.Array, draw: jax.Array | int, sampling: Sampling) -> jax.Array:
    """Chooses a token for each row of float32 logits: [B] int32.

    `draw` counts the tokens generated before; each draw has its own random key.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BxV, axis=-1).astype(jnp.int32)
    # The largest becomes 0, so that a small temperature gives no infinity but −∞. Zero and infinity
    # in float32 would make NaN of it and of the ids that may not be chosen.
    tiny = float(np.finfo(np.float32).tiny)
    temperature = min(max(sampling.temperature, tiny), 1 / tiny)
    scaled = (logits_BxV - logits_BxV.max(axis=-1, keepdims=True)) / temperature
    if sampling.top_p < 1:
        falling = jnp.sort(scaled, axis=-1, descending=True)
        probabilities = jax.nn.softmax(falling, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        kept = jnp.where(before < sampling.top_p, falling, 0.0)  # at least the likeliest
        scaled = jnp.where(scaled >= kept.min(axis=-1, keepdims=True), scaled, -jnp.inf)
    key = jax.random.fold_in(jax.random.key(sampling.seed), draw)
    return jax.random.categorical(key, scaled, axis=-1).astype(jnp.int32)


def _lengths(prompts: Sequence[Sequence[int]], vocab: int) -> list[int]:
    for prompt in prompts:
        if not len(prompt):
            raise UserError("prompt: is empty; give at least one token, such as the start token")
        if not 0 <= min(prompt) <= max(prompt) < vocab:
            raise UserError(
                f"prompt: has token {max(prompt)}, and the model's vocabulary has {vocab} entries; "
                "is this the model's tokenizer?"
            )
    return [len(prompt) for prompt in prompts]
