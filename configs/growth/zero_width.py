"""G_zero in width: doubles the width of the quickstart's base, padding the stream with zeros.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/zero_width.py --workdir=runs/growth/zero_width

`E' = [E, 0]`, `W' = [[W, A], [0, C]]`, `μ' = [√(d/D) μ, 1]`, ε' = ε d/D (arXiv 2405.15319, App. A;
the change of ε makes the growth exact). Function preserving. Expected: right after growth the loss
equals the base's up to rounding. In the paper growth in width costs more FLOPs than it saves.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "zero_width"
    c.model.layers, c.model.embed, c.model.mlp = 2, 256, 704
    c.model.heads, c.model.kv_heads = 8, 8
    return c
