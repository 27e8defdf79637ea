"""MIDAS: 2 → 4 → 6 → 8 layers; each stage repeats the middle block of two layers.

    prts train --config=configs/growth/midas.py --workdir=runs/growth/midas

Saunshi et al., "On the Inductive Bias of Stacking Towards Improving Reasoning", arXiv 2409.19044.
Needs about as many FLOPs as the quickstart's base and grown run together. Expected: the validation
loss jumps less at each stage (4.31 to 4.41, 4.02 to 4.08, 3.86 to 3.88) and ends at 3.70.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:scratch", __file__)
    c.init.growth.operator = "middle"
    c.init.growth.block = 2
    c.growth.stages = (
        {"steps": 400, "model": {"layers": 2}},
        {"steps": 300, "model": {"layers": 4}},
        {"steps": 300, "model": {"layers": 6}},
        {"steps": 800},
    )
    return c
