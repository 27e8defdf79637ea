"""Net2Net, bert2BERT: the quickstart's base twice as wide, by copies that share.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/split.py --workdir=runs/growth/split

`W' = L W R`: outputs are copied, inputs split, α + β = I (arXiv 2405.15319, eqs 10-11), unevenly,
so that copies part. Function preserving. Expected: the loss at the growth is the base's up to
rounding; in the paper width costs more FLOPs than it saves.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "split"
    c.init.growth.weights = "uneven"
    c.model.layers, c.model.embed, c.model.mlp = 2, 256, 704
    c.model.heads, c.model.kv_heads = 8, 8
    return c
