"""G_random in width: doubles the width of the quickstart's base, fresh entries behind gates.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/random_width.py --workdir=runs/growth/random_width

`E' = [E, ε]`, `W' = [[W, A], [B, C]]`, each output ⊙ c, c = [1, 0] → [1, 1] (arXiv 2405.15319, App.
A, after MSG). MLP units open over steps 0 to 100 since growth, the residual stream over 100 to 200,
heads over 200 to 300. Norms and epsilon are as in zero_width.py. Function preserving. Expected:
right after growth the loss equals the base's up to rounding. In the paper the run ends behind
training from scratch.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "random_width"
    c.init.growth.gate_steps = 100
    c.model.layers, c.model.embed, c.model.mlp = 2, 256, 704
    c.model.heads, c.model.kv_heads = 8, 8
    return c
