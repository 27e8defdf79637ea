"""The decoder that Llama and its relatives are: token ids in, float32 logits out."""

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.core import meta

from prts_jax.config import ComputeConfig, ModelConfig
from prts_jax.declaration import LAYERS, Kind
from prts_jax.mesh import axis_size, constrain, gather_residual, split_by_width
from prts_jax.model.attention import ATTENTION
from prts_jax.model.inputs import Cache, Cached, Documents, Gates
from prts_jax.model.layers import (
    Block,
    Rope,
    gated,
    matmul_precision,
    rms_norm,
    rope_tables,
)
from prts_jax.model.loss import token_losses
from prts_jax.model.parameters import declare_norm, declare_param

_QKV = ("query", "key", "value", ATTENTION)
_NAMED = (*_QKV, "gate", "up")
_POLICIES = jax.checkpoint_policies
REMAT_POLICIES = {
    "dots": _POLICIES.dots_with_no_batch_dims_saveable,
    "minimal": _POLICIES.save_only_these_names(*_NAMED),
    "save_qkv": _POLICIES.save_only_these_names(*_QKV),
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(_NAMED),
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": _POLICIES.nothing_saveable,
}
"""Policy → the activations of a block that are kept, on the device or in the host's memory."""


class Decoder(nn.Module):
    """Token embedding, stacked blocks, final norm, head (tied: the embedding again).

    Attributes:
      model: the model's shape.
      compute: dtype, attention, remat and scan.
      frozen: layers without a gradient; neither has the embedding's look-up. None: all have one.
      head_norms: an RMS norm over head_dim follows the query and key projections, as in Qwen3.
    """

    model: ModelConfig
    compute: ComputeConfig
    frozen: tuple[int, ...] | None = None
    head_norms: bool = False

    @nn.compact
    def __call__(
        self,
        tokens_BxS: jax.Array,
        documents: Documents | None = None,
        gates: Gates | None = None,
        cached: Cached | None = None,
        targets_BxS: jax.Array | None = None,
        z_loss: float = 0.0,
    ) -> tuple[jax.Array, Cache | None]:
        """Returns logits [B, S, vocab] float32 for int32 token ids [B, S], and the new cache.

        With targets, returns their losses [B, S] in place of the logits.
        """
        m, gates = self.model, gates or Gates()
        dtype = jnp.dtype(self.compute.dtype)
        vocab, embed = {"vocab": m.vocab}, {"embed": m.embed}
        # A tied embedding is also the head, and as the head it contracts its width.
        table_VxE = declare_param(
            self,
            "token_embedding",
            Kind.TABLE,
            vocab | embed,
            ("embed",) if m.tied else (),
            "embedding",
        )
        x_BxSxE = split_by_width(table_VxE.astype(dtype)[tokens_BxS])
        x_BxSxE = gated(x_BxSxE, gates.embed_E)
        x_BxSxE = constrain(x_BxSxE, ("batch", "residual_length", "features"))
        if self.frozen is not None:
            x_BxSxE = jax.lax.stop_gradient(x_BxSxE)
        located = documents or cached
        if located is None:
            positions = jnp.arange(tokens_BxS.shape[1], dtype=jnp.float32)
        else:
            positions = located.positions_BxS[:, None]
        rope = rope_tables(positions, m)
        cache = None if cached is None else cached.cache
        if m.layers:
            segment_ids_BxS = None if documents is None else documents.segment_ids_BxS
            x_BxSxE, cache = self._through_layers(x_BxSxE, rope, segment_ids_BxS, gates, cached)
        if cached is not None:  # only one position's logits of a row: they are large
            x_BxSxE = jnp.take_along_axis(x_BxSxE, cached.scored_B[:, None, None], axis=1)
        final_norm = declare_norm(self, "final_norm", embed)
        x_BxSxE = gather_residual(rms_norm(x_BxSxE, final_norm, m.norm_eps))
        if m.tied:
            head_ExV = table_VxE.T
        else:
            head_ExV = declare_param(self, "head", Kind.READER, embed | vocab, ("embed",))
        head_ExV = head_ExV.astype(dtype)
        if targets_BxS is not None:
            chunks = self.compute.loss_chunks
            return losses_in_chunks(x_BxSxE, head_ExV, targets_BxS, chunks, z_loss), cache
        return _logits(x_BxSxE, head_ExV), cache

    def _through_layers(
        self,
        x_BxSxE: jax.Array,
        rope: Rope,
        segment_ids_BxS: jax.Array | None,
        gates: Gates,
        cached: Cached | None,
    ) -> tuple[jax.Array, Cache | None]:
        m, shared = self.model, gates._replace(layers_L=None)
        cache, positions_BxS = (None, None) if cached is None else cached[:2]
        if not self.frozen:
            blocks = self._blocks(m.layers)(m, self.compute, self.head_norms, name=LAYERS)
            out: tuple[jax.Array, Cache | None] = blocks(
                x_BxSxE, rope, segment_ids_BxS, shared, positions_BxS, gates.layers_L, cache
            )
            return out
        # A scan goes backward through all of its layers or none: one for each run of layers that
        # are frozen or trained together. Up to the first trained one, none goes backward.
        stacked = self.variables["params"][LAYERS]
        is_frozen = [layer in self.frozen for layer in range(m.layers)]
        for frozen, group in itertools.groupby(range(m.layers), is_frozen.__getitem__):
            layers = list(group)
            part = slice(layers[0], layers[-1] + 1)
            params = jax.tree.map(lambda leaf, part=part: leaf[part], stacked)
            if frozen:
                params = jax.lax.stop_gradient(params)
            gate = None if gates.layers_L is None else gates.layers_L[part]
            blocks = self._blocks(len(layers))(m, self.compute, self.head_norms, parent=None)
            x_BxSxE, _ = blocks.apply(
                {"params": params}, x_BxSxE, rope, segment_ids_BxS, shared, None, gate, None
            )
        return x_BxSxE, None

    def _blocks(self, layers: int) -> Any:
        block: Any = Block
        if self.compute.remat != "none":
            # Without a loop the compiler would merge the recomputation with the first pass.
            block = nn.remat(
                block,
                prevent_cse=not self.compute.scan,
                policy=REMAT_POLICIES[self.compute.remat],
            )
        return nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, nn.broadcast, 0, 0),
            length=layers,
            unroll=1 if self.compute.scan else layers,
            metadata_params={meta.PARTITION_NAME: LAYERS},
        )


@jax.custom_vjp
def head_product(x_BxSxE: jax.Array, head_ExV: jax.Array) -> jax.Array:
    """Returns the logits [B, S, V] in float32 of inputs and head in the dtype of activations.

    Backward the cotangent of the logits is rounded to that dtype, as those of all other products
    are: in float32 it would be the step's largest array and its slowest product.
    """
    return _product("bse,ev->bsv", x_BxSxE, head_ExV, jnp.float32)


def _logits(x_BxSxE: jax.Array, head_ExV: jax.Array) -> jax.Array:
    return constrain(head_product(x_BxSxE, head_ExV), ("batch", "length", "vocab"))


def losses_in_chunks(
    x_BxSxE: jax.Array,
    head_ExV: jax.Array,
    targets_BxS: jax.Array,
    chunks: int,
    z_loss: float = 0.0,
) -> jax.Array:
    """Returns the loss of each target; logits exist for one chunk of positions at a time.

    Args:
      x_BxSxE: inputs of the head.
      head_ExV: the head in the dtype of `x_BxSxE`.
      targets_BxS: int32 token ids.
      chunks: a divisor of S; 1 keeps the logits for the backward pass, more compute them again.
      z_loss: as `token_losses` takes it.

    Returns:
      [B, S] float32, nats.
    """

    def losses(x: jax.Array, targets: jax.Array) -> jax.Array:
        return token_losses(_logits(x, head_ExV), targets, z_loss)

    if chunks == 1:
        return losses(x_BxSxE, targets_BxS)

    mesh = jax.sharding.get_abstract_mesh()
    parts = 1 if mesh.empty else axis_size(mesh, "length")
    rows, length = targets_BxS.shape

    def split(a: jax.Array) -> jax.Array:  # each chunk takes the same part of every device
        a = a.reshape(rows, parts, chunks, -1, *a.shape[2:])
        return jnp.moveaxis(a, 2, 0).reshape(chunks, rows, length // chunks, *a.shape[4:])

    chunk = jax.checkpoint(lambda part: losses(*part), prevent_cse=False)
    by_chunk = jax.lax.map(chunk, (split(x_BxSxE), split(targets_BxS)))
    by_part = by_chunk.reshape(chunks, rows, parts, -1)
    return jnp.moveaxis(by_part, 0, 2).reshape(rows, length)


def _product(equation: str, a: jax.Array, b: jax.Array, dtype: Any) -> jax.Array:
    precision = matmul_precision(a.dtype.name)
    return jnp.einsum(equation, a, b, precision=precision, preferred_element_type=dtype)


def _head_forward(
    x_BxSxE: jax.Array, head_ExV: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return head_product(x_BxSxE, head_ExV), (x_BxSxE, head_ExV)


def _head_backward(
    kept: tuple[jax.Array, jax.Array], cotangent_BxSxV: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x_BxSxE, head_ExV = kept
    dtype = x_BxSxE.dtype
    cotangent_BxSxV = cotangent_BxSxV.astype(dtype)
    return (
        _product("bsv,ev->bse", cotangent_BxSxV, head_ExV, dtype),
        _product("bse,bsv->ev", x_BxSxE, cotangent_BxSxV, dtype),
    )


head_product.defvjp(_head_forward, _head_backward)


def attention_flops_per_token(model: ModelConfig, length: int) -> int:
    """Counts the forward FLOPs of one token's causal attention.

    A token attends to (length + 1) / 2 tokens on average: two products (q kᵀ and weights · v) of
    2 · heads · head_dim FLOPs for each of them.
    """
    return model.layers * 2 * model.heads * model.head_dim * (length + 1)
