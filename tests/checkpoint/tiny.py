"""A tiny model with random parameters, and a checkpoint of it."""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from prts_jax.checkpoint.digests import digests
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.store import Checkpoints, save_checkpoint
from prts_jax.config import ModelConfig, RunConfig, to_dict
from prts_jax.declaration import Declaration
from prts_jax.model.architecture import declare
from prts_jax.tree import unflatten

MODEL = ModelConfig(vocab=48, layers=3, embed=16, heads=4, kv_heads=2, head_dim=4, mlp=24)
DECLARED = declare(MODEL)
ADAMW = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(mu_dtype=jnp.bfloat16))


def random_params(
    declarations: Mapping[str, Declaration] = DECLARED, seed: int = 0
) -> dict[str, Any]:
    """Returns random parameters, nested, on the default device."""
    rng = np.random.default_rng(seed)
    leaves = {
        path: jnp.asarray(rng.normal(size=declaration.shape), declaration.dtype)
        for path, declaration in declarations.items()
    }
    return unflatten(leaves)


def abstract(tree: Any) -> Any:
    """Returns the shapes, dtypes and shardings of a tree of arrays."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def lineage_of(
    params: Any,
    model: ModelConfig = MODEL,
    declarations: Mapping[str, Declaration] = DECLARED,
    step: int = 7,
) -> Lineage:
    """Returns a lineage with the digests of `params` and made-up counts."""
    return Lineage(
        step=step,
        stage_step=step,
        config=to_dict(RunConfig(model=model)),
        position=4096,
        tokens=4096,
        flops=1.5e12,
        flops_6nd=1.25e12,
        store="store-fingerprint",
        growth=(),
        digests=digests(params, declarations),
    )


def write_source(path: str | Path) -> dict[str, Any]:
    """Writes a checkpoint of `MODEL` and returns its parameters."""
    params = random_params()
    save_checkpoint(str(path), params, lineage_of(params))
    return params


def save_with_optimizer(
    directory: str | Path, transform: optax.GradientTransformation = ADAMW
) -> tuple[str, Any]:
    """Saves a checkpoint as a run does; returns its path and a state of distinct numbers."""
    params = random_params()
    rng = np.random.default_rng(3)
    state = jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(1, 9, leaf.shape), leaf.dtype), transform.init(params)
    )
    with contextlib.closing(Checkpoints(str(directory), keep=1, keep_every_steps=0)) as checkpoints:
        checkpoints.save(7, params, state, lineage_of(params))
        return checkpoints.path(7), state


def edit_lineage(file: Path, **changes: Any) -> None:
    """Changes values of a lineage.json that has no checksum, as an older version wrote it."""
    values = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in values.items() if not k.startswith("checksum")}))


def flip_byte(directory: Path, needle: bytes) -> None:
    """Flips one bit in the middle of the one place under `directory` that holds `needle`."""
    for file in directory.rglob("*"):
        if not file.is_file():
            continue
        data = bytearray(file.read_bytes())
        at = data.find(needle)
        if at >= 0:
            data[at + len(needle) // 2] ^= 0x10
            file.write_bytes(data)
            return
    raise AssertionError(f"the bytes are nowhere under {directory}")
