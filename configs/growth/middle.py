"""One stage of MIDAS: repeats the middle layer of the long quickstart's base.

    prts train --config=configs/quickstart.py:base,long --workdir=runs/quickstart-long/base
    prts train --config=configs/growth/middle.py --workdir=runs/growth/middle

Of n = l / b blocks of b layers, block ⌈n / 2⌉ is repeated (Saunshi et al., arXiv 2409.19044), here
layers 0, 1, 1, 2. `midas.py` has all stages. Expected: a small jump of the loss.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown,long", __file__)
    c.init.growth.operator = "middle"
    c.init.growth.block = 1
    c.model.layers = 4
    return c
