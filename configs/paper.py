"""The runs of the paper: shallow base, grown model, and deep model trained from scratch.

    prts train --config=configs/paper.py:1.1b,base --workdir=gs://BUCKET/1.1b/base \
        --config.data.train=gs://BUCKET/slimpajama/train
    prts train --config=configs/paper.py:1.1b,grown --workdir=gs://BUCKET/1.1b/grown \
        --config.data.train=gs://BUCKET/slimpajama/train \
        --config.init.grow_from=gs://BUCKET/1.1b/base

Sizes: 410m, 1.1b, 3b, 7b; runs: base, grown, scratch. Source: Du et al., arXiv 2405.15319. The base
trains for 5,000 steps of 1024 × 2048 tokens (10.5B), grows by a factor of 4, and continues with a
fresh AdamW, warm-up and cosine decay.
"""

from prts_jax import config
from prts_jax.errors import UserError
from prts_jax.model.presets import preset

PEAK_RATE = {"410m": 6e-4, "1.1b": 3e-4, "3b": 1.6e-4, "7b": 1e-4}
# The published script states a separate rate only for the base of the 1.1B model.
BASE_PEAK_RATE = PEAK_RATE | {"1.1b": 1e-3}
TARGET_STEPS = {"410m": 200_000, "1.1b": 50_000, "3b": 115_000, "7b": 145_000}
BASE_STEPS = 5_000


def get_config(argument: str = "1.1b,base"):
    size, comma, run = argument.partition(",")
    if not comma:
        raise UserError(f"{argument!r} is not SIZE,RUN, such as 1.1b,base")
    if run not in ("base", "grown", "scratch"):
        raise UserError(f"run {run!r} is none of base, grown, scratch")
    is_base = run == "base"
    c = config.default_config()
    c.model = config.to_dict(preset(f"paper_{size}_base" if is_base else f"paper_{size}"))
    c.compute.dtype = "bfloat16"
    c.compute.remat = "full"
    c.data.length, c.data.batch = 2048, 1024
    c.optimizer.weight_decay = 0.1
    c.schedule.kind = "cosine"
    c.schedule.peak = (BASE_PEAK_RATE if is_base else PEAK_RATE)[size]
    c.schedule.warmup_steps = 3_000
    # max_step of the original code: the rate is nearly constant for the first 100B tokens.
    c.schedule.decay_end = 300_000
    c.train.steps = BASE_STEPS if is_base else TARGET_STEPS[size]
    c.checkpoint.every_steps = 1_000
    c.evaluation.every_steps = 1_000
    return c
