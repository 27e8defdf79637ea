"""The main job in small: a shallow base, grown four times deeper, against the deep model alone.

    prts train --config=configs/quickstart.py:base    --workdir=runs/quickstart/base
    prts train --config=configs/quickstart.py:grown   --workdir=runs/quickstart/grown
    prts train --config=configs/quickstart.py:scratch --workdir=runs/quickstart/scratch

`make quickstart` runs all of it. An argument such as "grown,long" takes the longer run of
`make quickstart-long`.
"""

import dataclasses

from prts_jax import config
from prts_jax.model import counts, llama

BASE = config.ModelConfig(
    vocab=1024, layers=2, embed=128, heads=4, kv_heads=4, head_dim=32, mlp=352
)
TARGET = dataclasses.replace(BASE, layers=8)
BATCH, LENGTH = 16, 128


def training_flops(model: config.ModelConfig, steps: int) -> int:
    per_token = counts.training_flops_per_token(model, llama.declare(model), LENGTH)
    return steps * BATCH * LENGTH * per_token


def get_config(argument: str = "base"):
    run, _, size = argument.partition(",")
    base_steps, grown_steps = (3000, 6000) if size == "long" else (200, 500)
    total = training_flops(BASE, base_steps) + training_flops(TARGET, grown_steps)
    steps = {
        "base": base_steps,
        "grown": grown_steps,
        # The deep model alone gets what base and grown model spend together.
        "scratch": round(total / training_flops(TARGET, 1)),
    }[run]
    root = f"runs/quickstart{'-long' if size == 'long' else ''}"

    c = config.default_config()
    c.model = config.to_dict(BASE if run == "base" else TARGET)
    c.compute.dtype = "float32"
    c.data.train = "runs/shakespeare/train"
    c.data.validation = "runs/shakespeare/validation"
    c.data.batch, c.data.length = BATCH, LENGTH
    # The same rate for all three, constant after its warm-up: the comparison is of growth and not
    # of schedules.
    c.schedule.kind = "constant"
    c.schedule.peak = 2e-3
    c.schedule.warmup_steps = 50
    c.train.steps = steps
    c.evaluation.every_steps = max(steps // 20, 1)
    c.evaluation.tokens = 32768
    c.checkpoint.every_steps = max(steps // 5, 1)
    if run == "grown":
        c.init.grow_from = f"{root}/base"
    return c
