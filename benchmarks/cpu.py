"""Training on CPUs beside a plain-JAX loop of the same maths, turn by turn.

    python benchmarks/cpu.py [--layers=6] [--width=256] [--length=256] [--batch=4] [--rounds=30]

Both loops take their batches from one array of random tokens and start from the same parameters;
their losses must agree. A round is a few steps of each in random order, and what is compared is the
ratio of two times of a round, so that other work on the machine meets both. CPU-seconds are those
of all threads of this process; they tell more where the machine is busy. Ours reads its batches
ahead in a thread and its metrics a step late, as `prts train` does.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import optax
import plain_jax

from prts_jax.config import ComputeConfig, DataConfig, ModelConfig, RunConfig, ScheduleConfig
from prts_jax.feed import prefetch, shard_batch
from prts_jax.mesh import param_shardings, use_mesh
from prts_jax.model.architecture import declare
from prts_jax.model.initialise import init_params
from prts_jax.train.optim import make_optimizer
from prts_jax.train.state import fresh_state
from prts_jax.train.step import make_train_step

STEPS = 4
"""Steps of each loop in a round, of which the first round's must have the same losses."""

Rows = Callable[[int], np.ndarray]
Loop = Iterator[list[float]]


def run_config(options: argparse.Namespace) -> RunConfig:
    """Returns the run of this size, float32, at a constant rate."""
    width = options.width
    model = ModelConfig(
        vocab=options.vocab,
        layers=options.layers,
        embed=width,
        heads=width // 64,
        kv_heads=width // 64,
        head_dim=64,
        mlp=11 * width // 4,
    )
    return RunConfig(
        model=model,
        compute=ComputeConfig(dtype="float32"),
        data=DataConfig(length=options.length, batch=options.batch),
        schedule=ScheduleConfig(kind="constant", warmup_steps=0, peak=3e-4),
    )


def ours(config: RunConfig, rows: Rows) -> Loop:
    """Yields the losses of `STEPS` steps; a step is dispatched before the loss before is read."""
    data, declarations = config.data, declare(config.model)

    def batch(step: int) -> dict[str, jax.Array]:
        def part(start: int, stop: int) -> dict[str, np.ndarray]:
            tokens = rows(step)[start:stop]
            ones = np.ones((stop - start, data.length), np.float32)
            return {
                "tokens": tokens[:, :-1],
                "targets": tokens[:, 1:],
                "loss_weights": ones,
                "source_ids": np.zeros(ones.shape, np.int32),
            }

        shape = (data.batch, data.length)
        return shard_batch(mesh, part, shape, ("tokens", "targets", "loss_weights", "source_ids"))

    with use_mesh(config.mesh) as mesh:
        optimizer = make_optimizer(config)
        params = initial(config, param_shardings(mesh, declarations))
        state = fresh_state(params, optimizer, mesh)
        step = make_train_step(config, optimizer, sources=1)
        compiled = step.lower(state, batch(0), None).compile()
        stream = prefetch(batch, 0, 10**9)
        while True:
            losses: list[float] = []
            late: Any = None
            for _ in range(STEPS):
                state, metrics = compiled(state, next(stream), None)
                if late is not None:
                    losses.append(float(late))
                late = metrics.loss
            jax.block_until_ready(state)
            yield [*losses, float(late)]


def plain(config: RunConfig, rows: Rows) -> Loop:
    """Yields the losses of `STEPS` steps."""
    o, model = config.optimizer, config.model
    optimizer = optax.chain(
        optax.clip_by_global_norm(o.clip),
        optax.adamw(config.schedule.peak, o.b1, o.b2, o.eps, weight_decay=o.weight_decay),
    )
    params = initial(config, None)
    state = jax.jit(optimizer.init)(params)
    for first in itertools.count(0, STEPS):
        losses = []
        for step in range(first, first + STEPS):
            tokens, targets = jax.device_put((rows(step)[:, :-1], rows(step)[:, 1:]))
            params, state, loss = plain_jax.train_step(
                params, state, tokens, targets, optimizer, model.norm_eps, model.rope_theta
            )
            losses.append(float(loss))
        jax.block_until_ready(params)
        yield losses


def initial(config: RunConfig, shardings: Any) -> Any:
    """Returns the parameters both loops start from."""
    return init_params(declare(config.model), config.model.layers, "paper", 0, shardings)


def main() -> None:
    """Prints tokens per second of both loops and their ratio."""
    flags = argparse.ArgumentParser(description=__doc__)
    defaults = {"layers": 6, "width": 256, "length": 256, "batch": 4, "vocab": 4096, "rounds": 30}
    for name, value in defaults.items():
        flags.add_argument(f"--{name}", type=int, default=value)
    options = flags.parse_args()
    config = run_config(options)
    random = np.random.default_rng(0)
    shape = (64, options.batch, options.length + 1)
    tokens = random.integers(0, options.vocab, shape, dtype=np.int32)

    def rows(step: int) -> np.ndarray:
        batch: np.ndarray = tokens[step % len(tokens)]
        return batch

    loops = {"ours": ours(config, rows), "plain": plain(config, rows)}
    losses = {name: next(loop) for name, loop in loops.items()}
    np.testing.assert_allclose(losses["ours"], losses["plain"], rtol=2e-4)
    clocks = {"wall": time.perf_counter, "CPU": time.process_time}
    times: dict[tuple[str, str], list[float]] = {
        (clock, name): [] for clock in clocks for name in loops
    }
    for _ in range(options.rounds):
        for name in random.permutation(list(loops)):
            begin = {clock: read() for clock, read in clocks.items()}
            next(loops[name])
            for clock, read in clocks.items():
                times[clock, name].append(read() - begin[clock])
    count = STEPS * options.batch * options.length
    for clock in clocks:
        pairs = [times[clock, name] for name in loops]
        rates = [
            f"{name} {count / statistics.median(t):,.0f}"
            for name, t in zip(loops, pairs, strict=True)
        ]
        ratios = sorted(theirs / our for our, theirs in zip(*pairs, strict=True))
        quarter = len(ratios) // 4
        print(
            f"tokens per {clock}-second: {', '.join(rates)}; ours over plain "
            f"{statistics.median(ratios):.3f}, half of the rounds {ratios[quarter]:.3f} to "
            f"{ratios[-1 - quarter]:.3f}"
        )


if __name__ == "__main__":
    main()
