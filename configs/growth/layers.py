"""Partial stacking: repeats the last layer of the quickstart's base seven times.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/layers.py --workdir=runs/growth/layers

In the paper's notation layers count from 1 and `*` repeats the group before it: layer 1, then layer
2 seven times (arXiv 2405.15319, App. H). Expected: behind G_stack; the paper's ranking of the
stacked layers is all > middle ≈ back ≫ front.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "layers"
    c.init.growth.layers = "1-2*7"
    return c
