"""SOLAR depth up-scaling: joins two overlapping copies of the long quickstart's base.

    prts train --config=configs/quickstart.py:base,long --workdir=runs/quickstart-long/base
    prts train --config=configs/growth/solar.py --workdir=runs/growth/solar

Layers `0 … l-m-1, m … l-1` (Kim et al., arXiv 2312.15166), here 0, 1, 1, 2 with m = 1 (the original
drops 8 of 32 layers from each copy). Expected: a small jump of the loss, because most neighbouring
layers remain neighbours.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown,long", __file__)
    c.init.growth.operator = "solar"
    c.init.growth.drop = 1
    c.model.layers = 4
    return c
