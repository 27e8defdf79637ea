"""A model, a config and token stores so small that a whole run takes seconds.

This file is also the config file of those runs: `--config=tests/train/tiny.py`.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from data_pipelines.store import TokenStore, write_index, write_shard
from prts_jax import config

MODEL = config.ModelConfig(vocab=64, layers=2, embed=32, heads=4, kv_heads=2, head_dim=8, mlp=48)
SOURCES = ("prose", "verse")


def get_config() -> ml_collections.ConfigDict:
    """Eight rows of sixteen tokens a step, float32, a line and a checkpoint now and then."""
    c = config.default_config()
    c.model = config.to_dict(MODEL)
    c.compute.dtype = "float32"
    c.data.batch, c.data.length = 8, 16
    c.schedule.kind, c.schedule.peak, c.schedule.warmup_steps = "constant", 3e-3, 2
    c.train.steps = 6
    c.logging.every_steps, c.logging.tensorboard = 1, False
    c.evaluation.every_steps = 3
    c.checkpoint.every_steps = 2
    return c


def run_config(**changes: Any) -> config.RunConfig:
    """`run_config(data__batch=4)` is `get_config` with `data.batch` at 4, resolved."""
    values = get_config()
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    values.update_from_flattened_dict(dotted)
    return config.resolve(values)


def deeper(layers: int) -> config.ModelConfig:
    return dataclasses.replace(MODEL, layers=layers)


def write_store(
    folder: Path,
    tokens: int = 4000,
    seed: int = 0,
    vocab: int = MODEL.vocab,
    documents: Sequence[tuple[np.ndarray, int]] | None = None,
) -> TokenStore:
    """Writes a store of two shards whose documents take turns between the sources.

    Each source has an order of its own (the next token is the last one plus a step, with noise), so
    that there is something to learn and the sources differ.
    """
    folder.mkdir(parents=True)
    made = _documents(tokens, seed, vocab) if documents is None else list(documents)
    half = (len(made) + 1) // 2
    shards = [
        write_shard(folder, f"shard-{i:05d}", f"{i}.zst", 1, part, vocab, len(SOURCES))
        for i, part in enumerate((made[:half], made[half:]))
    ]
    identity: Mapping[str, Any] = {
        "task": "tiny",
        "split": "train",
        "tokenizer_sha256": "0",
        "inputs": [],
    }
    write_index(
        folder, identity=identity, vocab_size=vocab, eos_id=2, sources=SOURCES, shards=shards
    )
    return TokenStore.open(folder)


def _documents(tokens: int, seed: int, vocab: int) -> list[tuple[np.ndarray, int]]:
    random = np.random.default_rng(seed)
    made: list[tuple[np.ndarray, int]] = []
    while tokens:
        size = min(int(random.integers(5, 90)), tokens)
        source = len(made) % len(SOURCES)
        walk = np.cumsum(np.full(size, 1 + 2 * source)) + random.integers(vocab)
        noise = random.integers(0, vocab, size) * (random.random(size) < 0.1)
        made.append(((walk + noise) % vocab, source))
        tokens -= size
    return made
