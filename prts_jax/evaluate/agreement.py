"""How far a grown checkpoint computes what its source computes: logits and loss on one batch."""

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
"""Of the largest logit: what rounding may always change where the function is preserved."""

MARGIN = 4.0
"""How many times as much as a reordered source a grown model may differ; see `tolerance`."""

ROWS, LENGTH = 4, 256
"""Shape of the batch, shorter where the model was trained on less: 0.1 GB of logits at 32,000."""

_COMPUTE = ComputeConfig(dtype="float32", attention="xla")


@dataclass(frozen=True)
class Batch:
    """Tokens to compare two models on.

    Attributes:
      tokens: [rows, length] int32.
      targets: [rows, length] int32, the tokens that follow.
      weights: [rows, length] float32, 0 for padding.
      origin: where they are from, for people.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    origin: str


@dataclass(frozen=True)
class Outputs:
    """What a model makes of a batch.

    Attributes:
      logits: [rows, length, vocab] float32, on the host.
      loss: mean over the targets, nats.
      reordered: largest difference of a logit when the model is computed in another order of its
        components; 0 where that was not asked for.
    """

    logits: np.ndarray
    loss: float
    reordered: float = 0.0


@dataclass(frozen=True)
class Agreement:
    """What became of the logits and the loss.

    Attributes:
      data: where the tokens are from.
      tokens: how many were predicted.
      largest_difference: of two logits, source and grown.
      largest_logit: of the source, as an absolute value.
      loss_before: of the source, nats a token.
      loss_after: of the grown model.
      allowed: share of the largest logit that rounding may change; None where the growth does not
        keep the function.
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
        """Whether what the map says of the function is so."""
        return self.allowed is None or self.relative_difference <= self.allowed

    @property
    def relative_difference(self) -> float:
        """The largest difference as a share of the largest logit."""
        if not self.largest_difference:
            return 0.0
        return self.largest_difference / self.largest_logit if self.largest_logit else math.inf

    def to_json(self) -> dict[str, Any]:
        """Returns the fields and the relative difference; what is no number is null in JSON."""
        values = dataclasses.asdict(self) | {"relative_difference": self.relative_difference}
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


def tolerance(before: Outputs) -> float:
    """Returns the share of the largest logit that rounding in float32 may change.

    What rounding does depends on the weights: trained ones may have activations a thousand times as
    large as others. So the source is its own measure: computed with the components of its stream
    and of its hidden layers in another order, which changes nothing but rounding. Measured on a
    trained Llama of 30 layers (SmolLM2-135M): 1.0e-5 to 3.3e-5 of the largest logit in three
    orders; grown by zero_width and by split it differs by 5.3e-6 to 1.3e-5.
    """
    largest = float(np.abs(before.logits).max())
    return max(TOLERANCE, MARGIN * before.reordered / largest) if largest else TOLERANCE


def choose_batch(lineage: Lineage, store: str = "") -> Batch:
    """Reads the tokens that a growth is verified on, before anything is grown.

    Args:
      lineage: of the source; says the vocabulary, the length, and which stores it was trained with.
      store: directory of a token store; "" takes the checkpoint's own validation or training
        store, and where neither is there, random tokens.

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
        except UserError:  # it has moved, or is on another machine: the next will do
            continue
    tokens = np.random.default_rng(0).integers(0, lineage.model.vocab, (ROWS, length + 1))
    return Batch(
        tokens[:, :-1].astype(np.int32),
        tokens[:, 1:].astype(np.int32),
        np.ones((ROWS, length), np.float32),
        "random tokens, for the checkpoint's own stores are not here (losses say little)",
    )


def apply(checkpoint: str, batch: Batch, reorder: bool = False) -> Outputs:
    """Computes a checkpoint's model in float32; its parameters are freed again.

    Every value read is compared with its digest.

    Args:
      checkpoint: what `layout.resolve` returned.
      batch: what to compute it on.
      reorder: compute it in another order, too, which takes the memory of a second one.

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
        found = logits(params, jnp.asarray(batch.tokens), model, _COMPUTE, gates=gates)
        losses = token_losses(found, jnp.asarray(batch.targets))
        return found, (losses * batch.weights).sum() / batch.weights.sum()

    found, loss = forward(params)
    outputs = Outputs(np.asarray(found), float(loss))
    if not reorder or not model.layers:  # one sum rounds next to nothing
        return outputs
    again, _ = forward(_reordered(params, model, here))
    difference = np.abs(np.asarray(again) - outputs.logits).max()
    return dataclasses.replace(outputs, reordered=float(difference))


def _reordered(params: Mapping[str, Any], model: ModelConfig, here: jax.sharding.Sharding) -> Any:
    """Returns parameters of the same function, components of stream and hidden layers shuffled."""
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
    """Compares what source and grown model made of the same batch, with what the map says."""
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
