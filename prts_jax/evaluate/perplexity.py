"""Loss and perplexity of a token store by source, independent of padding."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from data_pipelines.batches.loader import EvalBatches
from prts_jax.compilation import compile_together
from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.evaluate.memory import check_fits
from prts_jax.feed import prefetch, shard_batch
from prts_jax.model.architecture import losses
from prts_jax.model.inputs import Gates, documents_of
from prts_jax.model.loss import loss_by_source

LARGEST_EXPONENT = 700.0
"""Largest loss whose perplexity is a float64; JSON has no infinity."""


@dataclass(frozen=True)
class Perplexity:
    """Loss over a token store by row, since intervals are estimated from rows.

    Attributes:
      sources: names, with or without tokens.
      row_losses: float64 [rows, sources], nats summed over the tokens of a row.
      row_tokens: float64 [rows, sources], predicted tokens.
    """

    sources: tuple[str, ...]
    row_losses: np.ndarray = field(repr=False)
    row_tokens: np.ndarray = field(repr=False)

    @property
    def loss(self) -> float:
        """Mean over all predicted tokens, nats."""
        return float(self.row_losses.sum() / self.row_tokens.sum())

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return int(self.row_tokens.sum())

    @property
    def by_source(self) -> dict[str, tuple[float, int]]:
        """Source name → (loss in nats, tokens); sources without tokens are left out."""
        losses, tokens = self.row_losses.sum(axis=0), self.row_tokens.sum(axis=0)
        return {
            name: (float(loss / count), int(count))
            for name, loss, count in zip(self.sources, losses, tokens, strict=True)
            if count
        }

    def metrics(self, blocks: int = 0) -> dict[str, float]:
        """Returns the evaluation's entries of a line of metrics.jsonl.

        The losses of `blocks` parts of neighbouring rows, at most one a row, are entries too.
        """
        losses = {"": self.loss} | {f"/{name}": loss for name, (loss, _) in self.by_source.items()}
        line: dict[str, float] = {}
        for suffix, loss in losses.items():
            line[f"validation_loss{suffix}"] = loss
            line[f"validation_perplexity{suffix}"] = math.exp(min(loss, LARGEST_EXPONENT))
        rows = np.flatnonzero(self.row_tokens.sum(axis=1))
        for at, block in enumerate(np.array_split(rows, min(blocks, len(rows))) if blocks else ()):
            loss = self.row_losses[block].sum() / self.row_tokens[block].sum()
            line[f"validation_block/{at:03d}"] = float(loss)
        return line


def evaluation_step(
    model: ModelConfig, compute: ComputeConfig, sources: int, mesh: Mesh
) -> jax.stages.Wrapped:
    """Returns the jitted (params, batch, gates) → (losses, weights), float32 [rows, sources]."""

    def eval_step(
        params: Any, batch: dict[str, jax.Array], gates: Gates | None
    ) -> tuple[jax.Array, jax.Array]:
        documents = documents_of(batch)
        of_token = losses(
            params,
            batch["tokens"],
            batch["targets"],
            model,
            compute,
            documents=documents,
            gates=gates,
        )

        def of_row(
            losses_S: jax.Array, weights_S: jax.Array, source_ids_S: jax.Array
        ) -> tuple[jax.Array, jax.Array]:
            return loss_by_source(losses_S[None], weights_S[None], source_ids_S[None], sources)

        return jax.vmap(of_row)(of_token, batch["loss_weights"], batch["source_ids"])

    # Replicated, since every process reads the sums of all rows.
    return jax.jit(eval_step, out_shardings=NamedSharding(mesh, PartitionSpec()))


def make_evaluator(
    model: ModelConfig, compute: ComputeConfig, batches: EvalBatches, mesh: Mesh
) -> Callable[..., Perplexity]:
    """Returns a function of parameters, and of gates unless all are open, to the loss on `batches`.

    It compiles at the first call with gates and at the first call without. Rows are summed on the
    mesh in float32, sums over rows are taken on the host in float64. Padding has weight 0.
    """
    sources = batches.store.sources
    jitted = evaluation_step(model, compute, len(sources), mesh)

    def batch_at(index: int) -> dict[str, jax.Array]:
        def rows(start: int, stop: int) -> dict[str, np.ndarray]:
            return batches.rows(index, start, stop)

        return shard_batch(mesh, rows, (batches.batch, batches.length), batches.fields)

    compiled: dict[bool, jax.stages.Compiled] = {}

    def evaluate(params: Any, gates: Gates | None = None) -> Perplexity:
        gated = gates is not None
        if gated not in compiled:
            compiled[gated] = compile_together(
                jitted, params, batch_at(0), gates, tpu_flags=compute.tpu_flags
            )
            check_fits(compiled[gated], batches.length)
        step = compiled[gated]
        sums = [step(params, batch, gates) for batch in prefetch(batch_at, 0, len(batches))]
        losses, tokens = (np.concatenate(part) for part in zip(*jax.device_get(sums), strict=True))
        return Perplexity(sources, losses.astype(np.float64), tokens.astype(np.float64))

    return evaluate
