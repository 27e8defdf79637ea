"""One stage of gradual stacking: repeats the last two layers of the long quickstart's base.

    prts train --config=configs/quickstart.py:base,long --workdir=runs/quickstart-long/base
    prts train --config=configs/growth/last.py --workdir=runs/growth/last

Layers `0 … l-1, l-b … l-1` (Reddi et al., ICML 2023), here 0, 1, 2, 1, 2. `gradual.py` has all
stages. Expected: a small jump of the loss.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown,long", __file__)
    c.init.growth.operator = "last"
    c.init.growth.block = 2
    c.model.layers = 5
    return c
