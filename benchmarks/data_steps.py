"""Cost of real data and of losses by source in a training step, for `benchmarks/data.py`.

Three steps take turns in a random order: with batches read as the trainer reads them, with one
batch that lies on the device, and with that batch but without losses by source. What is compared is
the ratio of two times of one round, so that other work on the machine meets both.
"""

import importlib
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from data_pipelines.batches.loader import TrainBatches
from data_pipelines.batches.order import ReadOrder
from data_pipelines.store.store import TokenStore
from prts_jax import config
from prts_jax.feed import prefetch, shard_batch
from prts_jax.mesh import make_mesh, param_shardings
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import init_params
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step

WARM_UP = 10


def train_in_turns(store: TokenStore, seconds: float) -> None:
    """Trains the quickstart's base model and prints what a step takes with each kind of batch."""
    run = quickstart()
    mesh = make_mesh(run.mesh)
    with jax.set_mesh(mesh):
        rounds, loading, total, loaded = _race(run, mesh, store, seconds)
    print(
        f"\nSteps of {run.model.layers} layers × {run.model.embed}, {run.data.batch} × "
        f"{run.data.length} tokens, {len(rounds)} rounds; median [95% interval]"
    )
    for name, column in zip(("real data", "one batch", "without sources"), rounds.T, strict=True):
        print(f"{name:36} {statistics.median(column) * 1e3:8.2f} ms")
    _show_ratio("real data over one batch", rounds[:, 0] / rounds[:, 1])
    _show_ratio("losses by source over none", rounds[:, 1] / rounds[:, 2])
    a_batch, a_step = loading / loaded, (total - loading) / rounds.size
    print(
        f"{'CPU-seconds of a batch over a step':36} {a_batch / a_step:8.3%} "
        f"({a_batch * 1e6:.0f} µs over {a_step * 1e3:.1f} ms)"
    )


def quickstart() -> config.RunConfig:
    """Returns the config of the quickstart's base run."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    return config.resolve(importlib.import_module("configs.quickstart").get_config("base"))


def _race(
    run: config.RunConfig, mesh: jax.sharding.Mesh, store: TokenStore, seconds: float
) -> tuple[np.ndarray, float, float, int]:
    """Returns times [rounds, 3], CPU-seconds of the loader and of all, and batches loaded."""
    data, declarations = run.data, declare(run.model)
    batches = TrainBatches(store, ReadOrder(data.length, data.batch, data.seed))
    loading: list[float] = []

    def load(step: int) -> dict[str, jax.Array]:
        begin = time.thread_time()
        position = step * data.batch * data.length
        batch = shard_batch(
            mesh,
            lambda start, stop: batches.rows(position, start, stop),
            (data.batch, data.length),
            batches.fields,
        )
        loading.append(time.thread_time() - begin)
        return batch

    optimizer = make_optimizer(run)
    params = init_params(
        declarations, run.model.layers, "paper", 0, param_shardings(mesh, declarations)
    )
    state = fresh_state(params, optimizer, mesh)
    one = load(0)
    sources = len(store.sources)
    with_sources, without = (
        make_train_step(run, optimizer, sources=n).lower(state, one).compile() for n in (sources, 0)
    )
    stream = prefetch(load, 0, 10**9)
    kinds: list[Any] = [
        lambda: (with_sources, next(stream)),
        lambda: (with_sources, one),
        lambda: (without, one),
    ]
    order = np.random.default_rng(0)

    def one_round() -> np.ndarray:
        nonlocal state
        times = np.empty(len(kinds))
        for kind in order.permutation(len(kinds)):
            begin = time.perf_counter()
            step, batch = kinds[kind]()
            state, metrics = step(state, batch)
            metrics.loss.block_until_ready()
            times[kind] = time.perf_counter() - begin
        return times

    for _ in range(WARM_UP):
        one_round()
    loading.clear()
    rounds, cpu, end = [], time.process_time(), time.monotonic() + seconds
    while time.monotonic() < end:
        rounds.append(one_round())
    total = time.process_time() - cpu
    stream.close()
    return np.array(rounds), sum(loading), total, len(loading)


def _show_ratio(name: str, ratios: np.ndarray) -> None:
    """Prints a median and its interval from order statistics (binomial, normal approximation)."""
    ordered, n = np.sort(ratios), len(ratios)
    reach = 1.96 * math.sqrt(n) / 2
    low = ordered[max(math.floor(n / 2 - reach), 0)]
    high = ordered[min(math.ceil(n / 2 + reach), n - 1)]
    print(f"{name:36} {np.median(ratios):8.4f} [{low:.4f}, {high:.4f}]")
