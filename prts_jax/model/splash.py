"""Attention by Pallas' splash kernels, for TPUs. Letters in shapes: see `attention`."""

from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from prts_jax.config.blocks import parse_splash_blocks
from prts_jax.errors import UserError
from prts_jax.mesh import axis_size, partition_spec

TILES = (512, 256, 128)
"""Positions of a tile, best first: a length takes the first that divides it."""


def attention(
    q_BxHxSxD: jax.Array,
    k_BxKxSxD: jax.Array,
    v_BxKxSxD: jax.Array,
    segment_ids_BxS: jax.Array | None,
    blocks: str,
    output_name: str,
) -> jax.Array:
    """Computes causal attention, on every device for its own heads and queries.

    Args:
      q_BxHxSxD: queries divided by √D.
      k_BxKxSxD: keys.
      v_BxKxSxD: values.
      segment_ids_BxS: int32; None: one segment.
      blocks: tiles, see `parse_splash_blocks`.
      output_name: of the output and its log-sum-exp, for rematerialisation.

    Returns:
      [B, H, S, D] in the dtype of `q`.

    Raises:
      UserError: no tile divides the positions of a device, or one of `blocks` does not.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    _, heads, length, head_dim = q_BxHxSxD.shape
    groups = k_BxKxSxD.shape[1]
    mesh = jax.sharding.get_abstract_mesh()
    tensor, shards = (1, 1) if mesh.empty else (axis_size(mesh, x) for x in ("kv_heads", "length"))
    mask = splash_attention_mask.MultiHeadMask(
        [splash_attention_mask.CausalMask((length, length)) for _ in range(heads // groups)]
    )
    kernel = splash_attention_kernel.make_splash_mqa(
        mask=mask,
        block_sizes=_tiles(length, length // shards, head_dim, blocks),
        residual_checkpoint_name=output_name,
        head_shards=1,
        q_seq_shards=shards,
    )
    # Heads of a teacher that the mesh does not divide are computed on every device.
    query_axis, key_axis = ("features", "features") if groups % tensor else ("heads", "kv_heads")
    by_key = ("batch", key_axis, "keys", "head_dim")
    arrays = [q_BxHxSxD, k_BxKxSxD, v_BxKxSxD]
    axes: list[tuple[str, ...]] = [("batch", query_axis, "length", "head_dim"), by_key, by_key]
    if segment_ids_BxS is not None:
        arrays += [segment_ids_BxS, segment_ids_BxS]
        axes += [("batch", "length"), ("batch", "keys")]
    if mesh.empty:
        return _on_device(kernel, *arrays)
    specs = [partition_spec(each) for each in axes]
    by_positions = NamedSharding(mesh, PartitionSpec(None, partition_spec(("length",))[0]))
    return jax.shard_map(
        _on_device,
        in_specs=(kernel.manual_sharding_spec(by_positions), *specs),
        out_specs=specs[0],
        check_vma=False,
    )(kernel, *arrays)


def _on_device(
    kernel: Any,
    q_BxHxSxD: jax.Array,
    k_BxKxTxD: jax.Array,
    v_BxKxTxD: jax.Array,
    *segment_ids: jax.Array,
) -> jax.Array:
    """Applies the kernel, which takes one group of queries [G, S, D], to every group and row.

    Args:
      kernel: from `make_splash_mqa`.
      q_BxHxSxD: queries of the device.
      k_BxKxTxD: keys of all positions.
      v_BxKxTxD: values of all positions.
      *segment_ids: of the queries [B, S] and of the keys [B, T], or none.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    batch, heads, length, head_dim = q_BxHxSxD.shape
    groups = k_BxKxTxD.shape[1]
    q_BxKxGxSxD = q_BxHxSxD.reshape(batch, groups, heads // groups, length, head_dim)
    segments = [splash_attention_kernel.SegmentIds(*segment_ids)] if segment_ids else []
    by_group = jax.vmap(kernel, in_axes=(0, 0, 0, *[None for _ in segments]))
    out = jax.vmap(by_group)(q_BxKxGxSxD, k_BxKxTxD, v_BxKxTxD, *segments)
    return out.reshape(q_BxHxSxD.shape)


def _tiles(keys: int, queries: int, head_dim: int, blocks: str) -> Any:
    """Returns the tiles of the splash kernels for so many keys and queries on a device.

    Raises:
      UserError: no tile divides both, or one that the config gives does not.
    """
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

    def tile(positions: int, largest: int = TILES[0]) -> int:
        return next((n for n in (largest, *TILES) if positions % n == 0), 0)

    if not tile(queries):
        raise UserError(
            f"config.compute.attention: splash takes multiples of 128 positions on a device, not "
            f"{queries}; choose another length, or 'auto'"
        )
    # By the compiler's count of bundles larger tiles pay at length 4096 and head_dim 128.
    forward = 1024 if keys >= 4096 and head_dim >= 128 else TILES[0]
    tiles: Any = {
        "block_q": tile(queries, forward),
        "block_kv": tile(keys, forward),
        "block_q_dkv": tile(queries),
        # The kernel writes a partial sum of dq for each of these: fewer need less memory.
        "block_kv_dkv": tile(keys, 1024),
    } | parse_splash_blocks(blocks)
    for block in ("block_kv", "block_kv_dkv"):
        tiles.setdefault(f"{block}_compute", tile(tiles[block]))
    for block, size in tiles.items():
        whole = queries if "_q" in block else keys
        if block.endswith("_compute"):
            whole = tiles[block.removesuffix("_compute")]
        if whole % size:
            raise UserError(
                f"config.compute.splash_blocks: {size} does not divide {whole} positions; choose a "
                "divisor"
            )
    return splash_attention_kernel.BlockSizes(**tiles, use_fused_bwd_kernel=True)
