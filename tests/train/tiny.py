"""A model, a config and token stores so small that a whole run takes seconds.

This file is also the config file of those runs: `--config=tests/train/tiny.py`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from data_pipelines.store.store import TokenStore
from data_pipelines.store.writer import Encoded, write_index, write_shard
from prts_jax import config, tree
from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.checkpoint.restore import restore_params
from prts_jax.mesh import abstract_params, make_mesh
from prts_jax.model.architecture import declare
from prts_jax.train.metrics import OUTSIDE_STEPS

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
    return changed(config.resolve(get_config()), **changes)


def changed(run: config.RunConfig, **changes: Any) -> config.RunConfig:
    """Returns a config with some keys changed, `data__batch` for `data.batch`."""
    values = config.to_dict(run)
    for key, value in changes.items():
        *parents, name = key.split("__")
        section = values
        for parent in parents:
            section = section[parent]
        section[name] = config.to_dict(value) if dataclasses.is_dataclass(value) else value
    return config.resolve(values)


def deeper(layers: int) -> config.ModelConfig:
    return dataclasses.replace(MODEL, layers=layers)


def write_store(
    folder: Path,
    tokens: int = 4000,
    seed: int = 0,
    vocab: int = MODEL.vocab,
    documents: Sequence[tuple[np.ndarray, int]] | None = None,
    tokenizer: str = "0",
) -> TokenStore:
    """Writes a store of two shards whose documents take turns between the sources.

    Each source has an order of its own (the next token is the last one plus a step, with noise), so
    that there is something to learn and the sources differ.
    """
    folder.mkdir(parents=True)
    rows = _documents(tokens, seed, vocab) if documents is None else documents
    encoded = [Encoded(*row) for row in rows]
    half = (len(encoded) + 1) // 2
    shards = [
        write_shard(folder, f"shard-{i:05d}", f"{i}.zst", 1, part, vocab, len(SOURCES))
        for i, part in enumerate((encoded[:half], encoded[half:]))
    ]
    identity: Mapping[str, Any] = {
        "task": "tiny",
        "split": "train",
        "tokenizer_sha256": tokenizer,
        "inputs": [],
    }
    write_index(
        folder, identity=identity, vocab_size=vocab, eos_id=2, sources=SOURCES, shards=shards
    )
    return TokenStore.open(folder)


def read_lines(workdir: Path) -> list[dict[str, Any]]:
    """Returns the lines of metrics.jsonl, which must all be JSON without NaN."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} in {workdir}/metrics.jsonl")

    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def curve(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the lines without what a clock measured."""
    clock = ("seconds", "tokens_per_second_per_device", "mfu", "time", "step_seconds", "goodput")
    clock += ("started", "first_step_seconds", *(f"{work}_seconds" for work in OUTSIDE_STEPS))
    clock += (
        "failed_saves",
        "median_host_seconds",
        "slowest_host_seconds",
        "slowest_host",
        "hbm_peak_bytes",
    )

    def timeless(line: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in line.items() if key not in clock}
        if "previous_stage" in kept:
            kept["previous_stage"] = timeless(kept["previous_stage"])
        return kept

    return [timeless(line) for line in lines]


def stored_params(checkpoint: str | Path, item: str = "params") -> dict[str, np.ndarray]:
    """Returns path → array of an item of a checkpoint, or of a run's newest."""
    path = resolve(str(checkpoint))
    declarations = declare(read_lineage(path).model)
    abstract = abstract_params(declarations, make_mesh(config.MeshConfig()))
    params = restore_params(path, abstract, declarations, item=item)
    return {name: np.asarray(leaf) for name, leaf in tree.flatten(params).items()}


def assert_same(actual: Mapping[str, Any], expected: Mapping[str, np.ndarray]) -> None:
    """Checks that two sets of parameters agree in every bit."""
    leaves = tree.flatten(actual)
    assert leaves.keys() == expected.keys()
    for name, leaf in leaves.items():
        np.testing.assert_array_equal(np.asarray(leaf), expected[name], err_msg=name)


def _documents(tokens: int, seed: int, vocab: int) -> list[tuple[np.ndarray, int]]:
    random = np.random.default_rng(seed)
    built: list[tuple[np.ndarray, int]] = []
    while tokens:
        size = min(int(random.integers(5, 90)), tokens)
        source = len(built) % len(SOURCES)
        walk = np.cumsum(np.full(size, 1 + 2 * source)) + random.integers(vocab)
        noise = random.integers(0, vocab, size) * (random.random(size) < 0.1)
        built.append(((walk + noise) % vocab, source))
        tokens -= size
    return built
