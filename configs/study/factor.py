"""How much to grow? Growth factors 2, 4 and 8 in depth at three training lengths.

    prts study --config=configs/study/factor.py:cpu --workdir=runs/study/factor-1
    prts study --config=configs/study/factor.py:cpu,2 --workdir=runs/study/factor-2

The number after the size multiplies the training length, and so the tokens per parameter: gains
are said to fade above 20 of them, and a factor of 2 to be the safest (arXiv 2605.13405).
"""

from prts_jax import config
from prts_jax.study import arms
from prts_jax.study.design import Study

FACTORS = (2, 4, 8)


def get_study(argument: str = "cpu"):
    size, _, times = argument.partition(",")
    c = config.inherit(f"sizes.py:{size}", __file__)
    c.train.steps = round(c.train.steps * float(times or 1))
    smoke = size == "smoke"
    peaks = () if smoke else (c.schedule.peak / 2, c.schedule.peak)
    c.init.growth.operator = "stack"
    everything = [arms.scratch(c, 1.0, peaks)]
    for factor in FACTORS:
        if c.model.layers % factor:
            continue
        layers = c.model.layers // factor
        base = arms.base(c, f"{layers}-layers", {"model.layers": layers}, 0.1, peaks)
        everything += [base, arms.grown(c, f"factor-{factor}", base, {}, peaks)]
    title = f"Which growth factor pays at {c.train.steps} steps?"
    return Study(title, tuple(everything), seeds=(0, 1) if smoke else (0, 1, 2))
