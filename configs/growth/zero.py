"""G_zero in depth: duplicates with zero outputs.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/zero.py --workdir=runs/growth/zero

Target layer i copies `⌊i / 4⌋`, the first copy as it is, the outputs of the others zero (arXiv
2405.15319, App. A): function preserving, exactly. Expected: the loss at the growth is the base's to
the last bit; in the paper it ends close behind G_stack.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "zero"
    return c
