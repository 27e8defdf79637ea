"""Comparison of a grown checkpoint with its source by logits and loss on one batch."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.batches.loader import EvalBatches
from data_pipelines.store.store import TokenStore
from prts_jax import tree
from prts_jax.checkpoint import store as checkpoint_store
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.errors import UserError
from prts_jax.growth.gates import opening
from prts_jax.growth.map import GrowthMap
from prts_jax.growth.on_mesh import grow_params
from prts_jax.growth.widening import Widening
from prts_jax.model.architecture import declare, logits
from prts_jax.model.loss import token_losses

TOLERANCE = 2e-6
"""Share of the largest logit that rounding may always change."""

MARGIN = 4.0
"""Allowed difference of a grown model in units of a reordered source's; see `tolerance`."""

ROWS, LENGTH = 4, 256
"""Largest shape of the batch; 0.1 GB of logits at a vocabulary of 32,000."""

_COMPUTE = ComputeConfig(dtype="float32", attention="xla")


@dataclass(frozen=True)
class Batch:
    """Tokens to compare two models on.

    Attributes:
      tokens: [rows, length] int32.
      targets: [rows, length] int32, the next tokens.
      weights: [rows, length] float32, 0 for padding.
      origin: description of the tokens' origin.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    origin: str


@dataclass(frozen=True)
class Outputs:
    """A model's outputs on a batch.

    Attributes:
      logits: [rows, length, vocab] float32, on the host.
      loss: mean over the targets, nats.
      reordered: largest difference of a logit after reordering the model's components; 0 if not
        computed.
    """

    logits: np.ndarray
    loss: float
    reordered: float = 0.0


@dataclass(frozen=True)
class Agreement:
    """Difference between source and grown model.

    Attributes:
      data: description of the tokens' origin.
      tokens: number of predicted tokens.
      largest_difference: largest absolute difference of a logit.
      largest_logit: largest absolute logit of the source.
      loss_before: loss of the source, nats per token.
      loss_after: loss of the grown model.
      allowed: share of the largest logit that rounding may change; None if the growth does not
        preserve the function.
    """

    data: str
    tokens: int
    largest_difference: float
    largest_logit: float
    loss_before: float
    loss_after: float
    allowed: float | None

    @property
    def holds(self) -> bool:
        """Whether the function is preserved as far as the map claims it."""
        return self.allowed is None or self.relative_difference <= self.allowed

    @property
    def relative_difference(self) -> float:
        """The largest difference as a share of the largest logit."""
        if not self.largest_difference:
            return 0.0
        return self.largest_difference / self.largest_logit if self.largest_logit else math.inf

    def to_json(self) -> dict[str, Any]:
        """Returns the fields and the relative difference; None for infinities and NaN."""
        values = dataclasses.asdict(self) | {"relative_difference": self.relative_difference}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


def tolerance(before: Outputs) -> float:
    """Returns the share of the largest logit that rounding in float32 may change.

    Rounding depends on the weights: trained activations may differ in size a thousandfold. The
    reference is therefore the source itself, with the components of its stream and hidden layers
    reordered, which changes rounding only. On a trained Llama of 30 layers (SmolLM2-135M) three
    orders differ by 1.0e-5 to 3.3e-5 of the largest logit; growth by zero_width and by split
    differs by 5.3e-6 to 1.3e-5.
    """
    largest = float(np.abs(before.logits).max())
    return max(TOLERANCE, MARGIN * before.reordered / largest) if largest else TOLERANCE


def choose_batch(lineage: Lineage, store: str = "") -> Batch:
    """Reads the tokens on which a growth is verified.

    Args:
      lineage: lineage of the source, with its vocabulary, length and stores.
      store: directory of a token store; "" for the checkpoint's own validation or training store,
        or random tokens if both are missing.

    Raises:
      UserError: `store` cannot be read or has a larger vocabulary than the model.
    """
    data = lineage.config["data"]
    length = min(LENGTH, data["length"])
    if store:
        return _read(store, lineage.model, length)
    for directory in filter(None, (data["validation"], data["train"])):
        try:
            return _read(directory, lineage.model, length)
        except UserError:  # moved, or on another machine
            continue
    tokens = np.random.default_rng(0).integers(0, lineage.model.vocab, (ROWS, length + 1))
    return Batch(
        tokens[:, :-1].astype(np.int32),
        tokens[:, 1:].astype(np.int32),
        np.ones((ROWS, length), np.float32),
        "random tokens, for the checkpoint's own stores are not here (losses say little)",
    )


def apply(checkpoint: str, batch: Batch, reorder: bool = False) -> Outputs:
    """Computes a checkpoint's logits and loss in float32 and frees its parameters.

    Every value read is verified by its digest.

    Args:
      checkpoint: the result of `layout.resolve`.
      batch: the tokens.
      reorder: also compute the reordered model, with the memory of a second one.

    Raises:
      UserError: the checkpoint is damaged.
    """
    lineage = checkpoint_store.read_lineage(checkpoint)
    model, opens = lineage.model, opening(lineage)
    gates = None if opens is None else opens.at(lineage.stage_step)
    declarations = declare(model)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for path, leaf in declarations.items()
    }
    params = checkpoint_store.restore_params(
        checkpoint, tree.unflatten(abstract), declarations, verify=True
    )

    @jax.jit
    def forward(params: Mapping[str, Any]) -> tuple[jax.Array, jax.Array]:
        outputs = logits(params, jnp.asarray(batch.tokens), model, _COMPUTE, gates=gates)
        losses = token_losses(outputs, jnp.asarray(batch.targets))
        return outputs, (losses * batch.weights).sum() / batch.weights.sum()

    computed, loss = forward(params)
    outputs = Outputs(np.asarray(computed), float(loss))
    if not reorder or not model.layers:  # a single sum hardly rounds
        return outputs
    again, _ = forward(_reordered(params, model, here))
    difference = np.abs(np.asarray(again) - outputs.logits).max()
    return dataclasses.replace(outputs, reordered=float(difference))


def _reordered(params: Mapping[str, Any], model: ModelConfig, here: jax.sharding.Sharding) -> Any:
    """Returns parameters of the same function with stream and hidden components shuffled."""
    random = np.random.default_rng(0)

    def shuffled(size: int) -> Widening:
        return Widening(tuple(map(int, random.permutation(size))), (1.0,) * size)

    widths = {"embed": shuffled(model.embed), "mlp": shuffled(model.mlp)}
    layers = tuple(range(model.layers))
    growth_map = GrowthMap("reordered", {}, model, model, layers, widths=widths)
    declarations = declare(model)
    shardings = tree.unflatten(dict.fromkeys(declarations, here))
    return grow_params(params, growth_map, declarations, shardings)


def compare(before: Outputs, after: Outputs, batch: Batch, growth_map: GrowthMap) -> Agreement:
    """Compares the outputs of source and grown model on one batch with the map's claim."""
    return Agreement(
        data=batch.origin,
        tokens=int(batch.weights.sum()),
        largest_difference=float(np.abs(after.logits - before.logits).max()),
        largest_logit=float(np.abs(before.logits).max()),
        loss_before=before.loss,
        loss_after=after.loss,
        allowed=tolerance(before) if growth_map.function_preserving() else None,
    )


def _read(directory: str, model: ModelConfig, length: int) -> Batch:
    store = TokenStore.open(directory)
    if store.vocab_size > model.vocab:
        raise UserError(
            f"{directory}: its tokenizer has {store.vocab_size} entries and the model "
            f"{model.vocab}; give a store of the model's tokenizer"
        )
    rows = EvalBatches(store, length, ROWS).rows(0, 0, ROWS)
    return Batch(rows["tokens"], rows["targets"], rows["loss_weights"], f"the start of {directory}")
