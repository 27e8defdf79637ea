"""G_zero in depth: adds copies of layers with zero outputs.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/zero.py --workdir=runs/growth/zero

Target layer i copies source layer `⌊i / 4⌋`. The first copy is unchanged, the others have zero
outputs (arXiv 2405.15319, App. A). Exactly function preserving. Expected: right after growth the
loss equals the base's, bit for bit. In the paper the run ends close behind G_stack.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "zero"
    return c
