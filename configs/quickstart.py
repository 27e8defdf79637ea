"""Quickstart: a small base grown to four times its depth, compared with training from scratch.

    prts train --config=configs/quickstart.py:base    --workdir=runs/quickstart/base
    prts train --config=configs/quickstart.py:grown   --workdir=runs/quickstart/grown
    prts train --config=configs/quickstart.py:scratch --workdir=runs/quickstart/scratch

`make quickstart` runs all three on the embedded plays of Shakespeare; `make quickstart-long` runs
the long size ("base,long", "grown,long", "scratch,long"). Expected results: the tables in the
README.
"""

import dataclasses
import typing

from prts_jax import config
from prts_jax.errors import UserError
from prts_jax.model import architecture, counts

BATCH, LENGTH = 8, 128


class Size(typing.NamedTuple):
    """Model, steps and learning rate of one size of the quickstart."""

    base: config.ModelConfig
    base_steps: int
    grown_steps: int
    peak_rate: float
    directory: str


SIZES = {
    "short": Size(
        config.ModelConfig(
            vocab=1024, layers=2, embed=128, heads=4, kv_heads=4, head_dim=32, mlp=352
        ),
        base_steps=400,
        grown_steps=1_200,
        peak_rate=2e-3,
        directory="runs/quickstart",
    ),
    "long": Size(
        config.ModelConfig(
            vocab=1024, layers=3, embed=192, heads=6, kv_heads=6, head_dim=32, mlp=528
        ),
        base_steps=1_000,
        grown_steps=2_800,
        peak_rate=1.5e-3,
        directory="runs/quickstart-long",
    ),
}
GROWTH_FACTOR = 4


def flops_per_step(model: config.ModelConfig) -> int:
    declarations = architecture.declare(model)
    return BATCH * LENGTH * counts.training_flops_per_token(model, declarations, LENGTH)


def get_config(argument: str = "base"):
    run, _, size_name = argument.partition(",")
    size_name = size_name or "short"
    if size_name not in SIZES:
        raise UserError(f"size {size_name!r} is none of {', '.join(SIZES)}")
    size = SIZES[size_name]
    target = dataclasses.replace(size.base, layers=GROWTH_FACTOR * size.base.layers)
    spent = size.base_steps * flops_per_step(size.base) + size.grown_steps * flops_per_step(target)
    steps = {
        "base": size.base_steps,
        "grown": size.grown_steps,
        # Training from scratch gets the FLOPs that base and grown run spend together.
        "scratch": round(spent / flops_per_step(target)),
    }
    if run not in steps:
        raise UserError(f"run {run!r} is none of {', '.join(steps)}")

    c = config.default_config()
    c.model = config.to_dict(size.base if run == "base" else target)
    c.compute.dtype = "float32"
    c.data.train = "runs/shakespeare/train"
    c.data.validation = "runs/shakespeare/validation"
    c.data.batch, c.data.length = BATCH, LENGTH
    # All three runs have the same constant rate, so the comparison is of growth, not of schedules.
    c.schedule.kind = "constant"
    c.schedule.peak = size.peak_rate
    c.schedule.warmup_steps = 50
    c.train.steps = steps[run]
    # All held-out tokens, 12 times in the grown run: about a fifth of the time.
    c.evaluation.every_steps = size.grown_steps // 12 // 20 * 20
    c.evaluation.tokens = 0
    c.evaluation.batch = 32
    c.logging.every_steps = 20
    c.checkpoint.every_steps = size.grown_steps // 10
    if run == "grown":
        c.init.grow_from = f"{size.directory}/base"
    return c
