"""G_learn, LiGO: trains growth matrices, then grows the quickstart's base with them.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/learned.py  --workdir=runs/growth/learned

`W_i' = Σ_j D_ij W_j`, with a separate D [8, 2] for each kind of weight. D starts as G_stack and is
trained for 100 steps (arXiv 2405.15319, eqs 41-42; arXiv 2303.00980). The run is 100 steps shorter,
so it costs the same as `configs/quickstart.py:grown`. Expected: a loss of 4.32 right after growth,
where G_stack has 4.72; slightly behind G_stack at equal FLOPs (docs/growing.md).
"""

from prts_jax import config


def get_config(size: str = "short"):
    c = config.inherit(f"../quickstart.py:grown,{size}", __file__)
    c.init.growth.operator = "learned"
    c.init.growth.learn_steps = 100
    c.train.steps -= c.init.growth.learn_steps
    return c
