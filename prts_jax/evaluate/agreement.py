"""Comparison of a grown checkpoint with its source by logits and loss on one batch."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.batches.loader import EvalBatches
from data_pipelines.store.several import store_shares
from prts_jax import tree
from prts_jax.checkpoint import layout, restore
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.declaration import Declaration
from prts_jax.errors import UserError
from prts_jax.evaluate.scores import finite
from prts_jax.evaluate.store_tokenizer import open_store_of
from prts_jax.growth.gates import opening
from prts_jax.growth.map import GrowthMap
from prts_jax.model.architecture import declare, logits
from prts_jax.model.inputs import Gates
from prts_jax.model.loss import token_losses

TOLERANCE = 2e-6
"""Share of the largest logit that rounding may always change."""

MARGIN = 6.0
"""Allowed difference in units of the grown model's own rounding; see `tolerance`."""

MOST = 0.1
"""Largest share that may be called rounding: beyond it the grown model is another in float32.

Pair noise ten times the weights amplifies rounding a hundredfold in every layer."""

ROWS, LENGTH = 4, 256
"""Largest shape of the batch; 0.1 GB of logits at a vocabulary of 32,000."""

_COMPUTE = ComputeConfig(dtype="float32", attention="xla")


@dataclass(frozen=True)
class Batch:
    """Tokens, the next tokens, and weights, 0 for padding: [rows, length].

    `origin` describes where they come from.
    """

    tokens: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    origin: str

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets and weights."""
        return self.tokens, self.targets, self.weights


@dataclass(frozen=True)
class Outputs:
    """A model's logits on a batch, [rows, length, vocab] float32, and mean loss in nats.

    `rounding` is the largest change of a logit when the same function is rounded in another way; 0
    if not computed.
    """

    logits: np.ndarray
    loss: float
    rounding: float = 0.0


@dataclass(frozen=True)
class Agreement:
    """Difference between source and grown model.

    Attributes:
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
        return finite(values)


def tolerance(before: Outputs, after: Outputs) -> float:
    """Returns the share of the largest logit that rounding in float32 may change.

    Rounding depends on the weights and on the map: halves of a weight, or a weight plus and minus
    noise a thousand times its size, are rounded as they are stored and in every sum over them. The
    reference is therefore the grown model's own rounding (`outputs_of`). A right map uses at most a
    third of the tolerance; at least `TOLERANCE` and at most `MOST` is allowed.
    """
    largest = float(np.abs(before.logits).max())
    share = MARGIN * after.rounding / largest if largest else 0.0
    return min(max(TOLERANCE, share), MOST)


def choose_batch(lineage: Lineage, store: str = "") -> Batch:
    """Reads the tokens on which a growth of a checkpoint with this lineage is verified.

    They are of `store`; without one, of the checkpoint's own validation or training store, or
    random if both are missing.

    Raises:
      UserError: `store` cannot be read or has a larger vocabulary than the model.
    """
    data = lineage.config["data"]
    length = min(LENGTH, data["length"])
    if store:
        return _read(store, lineage.model, length)
    for directory in filter(None, (data["validation"], *store_shares(data["train"]))):
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


def apply(checkpoint: str, batch: Batch, rounding: bool = False) -> Outputs:
    """Computes a checkpoint's logits and loss in float32; see `outputs_of`.

    Every value read is verified by its digest.

    Raises:
      UserError: the checkpoint is damaged.
    """
    lineage = layout.read_lineage(checkpoint)
    opens = opening(lineage)
    declarations = declare(lineage.model)
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = {
        path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here)
        for path, leaf in declarations.items()
    }
    params = restore.restore_params(
        checkpoint, tree.unflatten(abstract), declarations, lineage=lineage
    )
    leaves = tree.flatten(params)
    del params  # `outputs_of` replaces leaf by leaf: two whole models may not fit
    gates = Gates() if opens is None else opens.at(lineage.stage_step)
    return outputs_of(leaves, lineage.model, batch, gates, rounding)


def outputs_of(
    leaves: dict[str, jax.Array],
    model: ModelConfig,
    batch: Batch,
    gates: Gates,
    rounding: bool = False,
) -> Outputs:
    """Computes a model's logits and loss in float32.

    With `rounding`, computes the model also with every sum over components, units and heads in
    another order and the last bit of every parameter changed. That replaces `leaves`, path →
    parameter, one by one, and takes the memory of one more leaf.
    """
    computed, loss = _forward(tree.unflatten(leaves), gates, batch.arrays, model)
    outputs = Outputs(np.asarray(computed), float(loss))
    if not rounding or not model.layers:  # a single sum hardly rounds
        return outputs
    orders, declarations = _orders(model), declare(model)
    for at, path in enumerate(leaves):
        key = jax.random.fold_in(jax.random.key(0), at)
        leaves[path] = _rounded(leaves[path], declarations[path], orders, key)
    again, _ = _forward(tree.unflatten(leaves), _reordered(gates, orders), batch.arrays, model)
    difference = np.abs(np.asarray(again) - outputs.logits).max()
    return dataclasses.replace(outputs, rounding=float(difference))


@functools.partial(jax.jit, static_argnames="model")
def _forward(
    params: Mapping[str, Any],
    gates: Gates,
    arrays: tuple[jax.Array, jax.Array, jax.Array],
    model: ModelConfig,
) -> tuple[jax.Array, jax.Array]:
    """Returns logits [rows, length, vocab] and the mean loss, float32."""
    tokens, targets, weights = arrays
    outputs = logits(params, tokens, model, _COMPUTE, gates=gates)
    return outputs, (token_losses(outputs, targets) * weights).sum() / weights.sum()


def _orders(model: ModelConfig) -> dict[str, np.ndarray]:
    """Returns another order of the positions of each axis, query heads with their key heads."""
    random = np.random.default_rng(0)
    queries = np.arange(model.heads).reshape(model.kv_heads, -1)
    key_heads = random.permutation(model.kv_heads)
    return {
        "embed": random.permutation(model.embed),
        "mlp": random.permutation(model.mlp),
        "kv_heads": key_heads,
        "heads": queries[key_heads].ravel(),
    }


def _rounded(
    leaf: jax.Array, declaration: Declaration, orders: Mapping[str, np.ndarray], key: jax.Array
) -> jax.Array:
    """Returns a leaf in another order, each value changed by up to one unit in its last place."""
    for at, axis in enumerate(declaration.axes):
        if axis in orders:
            leaf = jnp.take(leaf, orders[axis], axis=at)
    share = jax.random.uniform(key, leaf.shape, leaf.dtype, -1, 1)
    return leaf + leaf * share * jnp.finfo(leaf.dtype).eps


def _reordered(gates: Gates, orders: Mapping[str, np.ndarray]) -> Gates:
    """Returns the gates of the reordered model."""

    def reorder(gate: jax.Array | None, axis: str) -> jax.Array | None:
        return None if gate is None else gate[orders[axis]]

    return gates._replace(
        embed_E=reorder(gates.embed_E, "embed"),
        mlp_M=reorder(gates.mlp_M, "mlp"),
        heads_H=reorder(gates.heads_H, "heads"),
    )


def compare(before: Outputs, after: Outputs, batch: Batch, growth_map: GrowthMap) -> Agreement:
    """Compares the outputs of source and grown model on one batch with the map's claim."""
    return Agreement(
        data=batch.origin,
        tokens=int(batch.weights.sum()),
        largest_difference=float(np.abs(after.logits - before.logits).max()),
        largest_logit=float(np.abs(before.logits).max()),
        loss_before=before.loss,
        loss_after=after.loss,
        allowed=tolerance(before, after) if growth_map.function_preserving() else None,
    )


def _read(directory: str, model: ModelConfig, length: int) -> Batch:
    rows = EvalBatches(open_store_of(directory, model), length, ROWS).rows(0, 0, ROWS)
    return Batch(rows["tokens"], rows["targets"], rows["loss_weights"], f"the start of {directory}")
