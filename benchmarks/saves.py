"""Measures for how long a save blocks training, with and without digests.

Parameters and Adam's moments are saved; between saves a step changes all of them in place, as
training does. Prints a line for each save: seconds until `save` returns, until the next step is
done, and until the checkpoint is complete.

    python benchmarks/saves.py --folder=DIR [--embed=704] [--layers=8] [--vocab=32000] [--saves=4]
"""

import argparse
import contextlib
import shutil
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import optax

from prts_jax.checkpoint import store
from prts_jax.config import ModelConfig
from prts_jax.model.architecture import declare
from tests.checkpoint.tiny import lineage_of, random_params


def main() -> None:
    """Saves with digests, without, and with digests again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="new folder")
    parser.add_argument("--embed", type=int, default=704, help="width; a head has 64")
    parser.add_argument("--layers", type=int, default=8, help="layers")
    parser.add_argument("--vocab", type=int, default=32_000, help="size of the vocabulary")
    parser.add_argument("--saves", type=int, default=4, help="saves of each kind")
    arguments = parser.parse_args()
    heads, width = arguments.embed // 64, arguments.embed
    model = ModelConfig(
        vocab=arguments.vocab,
        layers=arguments.layers,
        embed=width,
        heads=heads,
        kv_heads=heads,
        mlp=4 * width,
    )
    params = random_params(declare(model))
    state = params, optax.adam(1e-3).init(params)
    leaves = jax.tree.leaves(state)
    print(f"{sum(leaf.size for leaf in leaves) / 3e6:.1f}M parameters, three arrays of each")
    lineage = lineage_of(random_params())
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)
    state = jax.block_until_ready(step(state))
    for kind in ("with", "without", "with"):
        off = mock.patch.object(store, "start_digests", return_value=(dict, dict))
        with off if kind == "without" else contextlib.nullcontext():
            state = _save(kind, arguments.folder, arguments.saves, state, step, lineage)


def _save(kind: str, folder: Path, saves: int, state: Any, step: Any, lineage: Any) -> Any:
    checkpoints = store.Checkpoints(str(folder), keep=1, keep_every_steps=0)
    for number in range(1, saves + 1):
        began = time.perf_counter()
        checkpoints.save(number, *state, lineage)
        returned = time.perf_counter() - began
        state = jax.block_until_ready(step(state))
        stepped = time.perf_counter() - began
        checkpoints.wait()
        whole = time.perf_counter() - began
        print(
            f"{kind:7} digests: blocked {returned:.3f} s, next step {stepped:.3f} s, "
            f"complete {whole:.2f} s",
            flush=True,
        )
    checkpoints.close()
    shutil.rmtree(folder)
    return state


if __name__ == "__main__":
    main()
