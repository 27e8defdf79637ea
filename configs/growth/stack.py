"""G_stack: stacks four copies of the quickstart's base.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/stack.py --workdir=runs/growth/stack

Target layer i copies source layer `i mod l` (Du et al., arXiv 2405.15319): `M∘M∘M∘M`. This is
`configs/quickstart.py:grown`. Expected: the loss jumps at the growth and recovers; the README has
the results.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "stack"
    return c
