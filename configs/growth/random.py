"""G_random in depth: adds fresh layers behind gates.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/random.py --workdir=runs/growth/random

Three fresh layers follow each layer: `Y = X + f(Norm(X)) ⊙ c`, where c rises from 0 to 1 over 200
steps (arXiv 2405.15319, App. A). Exactly function preserving. Expected: right after growth the loss
equals the base's, bit for bit; at step 200 the training step is compiled again without gates. In
the paper the run ends behind training from scratch.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "random"
    c.init.growth.gate_steps = 200
    return c
