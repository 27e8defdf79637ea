"""Interpolation: repeats each layer of the quickstart's base four times in place.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/interpolate.py --workdir=runs/growth/interpolate

Target layer i copies source layer `⌊i / 4⌋` (arXiv 2405.15319, App. H.2). Expected: from a base
with little training, equal to G_stack at first and behind it later; from a converged base, ahead of
G_stack (arXiv 2510.08008).
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "interpolate"
    return c
