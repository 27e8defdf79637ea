"""Net2Net, bert2BERT: doubles the width of the quickstart's base by copies with split weights.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/split.py --workdir=runs/growth/split

`W' = L W R`: output rows are copied and input columns split, α + β = I (arXiv 2405.15319, eqs
10-11). The split is uneven, so that copies diverge in training. Function preserving. Expected:
right after growth the loss equals the base's up to rounding. In the paper growth in width costs
more FLOPs than it saves.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "split"
    c.init.growth.weights = "uneven"
    c.model.layers, c.model.embed, c.model.mlp = 2, 256, 704
    c.model.heads, c.model.kv_heads = 8, 8
    return c
