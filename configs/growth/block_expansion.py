"""LLaMA Pro: inserts an identity copy after each layer of the quickstart's base.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/block_expansion.py --workdir=runs/growth/block_expansion

A copy whose attention output and down projection are zero is the identity (Wu et al., arXiv
2401.02415): function preserving, 2 → 4 layers. Expected: right after growth the loss equals the
base's, bit for bit, and then falls.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "block_expansion"
    c.init.growth.every = 1
    c.model.layers = 4
    return c
