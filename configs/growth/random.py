"""G_random in depth: fresh layers behind gates.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/random.py --workdir=runs/growth/random

After each layer three fresh ones, `Y = X + f(Norm(X)) ⊙ c`, c from 0 to 1 over 200 steps (arXiv
2405.15319, App. A): function preserving, exactly. Expected: the loss at the growth is the base's to
the last bit, and the step is compiled again at step 200, without gates; in the paper it ends behind
training from scratch.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "random"
    c.init.growth.gate_steps = 200
    return c
