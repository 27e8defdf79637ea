"""Interpolation: every layer of the quickstart's base four times in its place.

    prts train --config=configs/quickstart.py:base --workdir=runs/quickstart/base
    prts train --config=configs/growth/interpolate.py --workdir=runs/growth/interpolate

Target layer i copies `⌊i / 4⌋` (arXiv 2405.15319, App. H.2). Expected: as G_stack at first, and
behind it later, when the base was young; ahead of it from a converged base (arXiv 2510.08008).
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:grown", __file__)
    c.init.growth.operator = "interpolate"
    return c
