"""G_learn, LiGO: the quickstart's base grown by matrices that are trained first.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/learned.py  --workdir=runs/growth/learned

`W_i' = Σ_j D_ij W_j`, with a D [8, 2] of its own for every kind of weight, trained for 100 steps
from the value at which this is G_stack (arXiv 2405.15319, eqs 41-42; arXiv 2303.00980). The run is
shorter by these steps, so that it costs what `configs/quickstart.py:grown` does. Expected: right
after growth 4.32 where G_stack has 4.72, and a little behind it at equal FLOPs (docs/growing.md).
"""

from prts_jax import config


def get_config(size: str = "short"):
    c = config.inherit(f"../quickstart.py:grown,{size}", __file__)
    c.init.growth.operator = "learned"
    c.init.growth.learn_steps = 100
    c.train.steps -= c.init.growth.learn_steps
    return c
