"""Gradual stacking: 2 → 4 → 8 layers in one run, the last block again at each stage.

    prts train --config=configs/growth/gradual.py --workdir=runs/growth/gradual

Reddi et al., ICML 2023 (`gs` of the paper's code; its runs go 6 → 12 → 24). About the FLOPs of the
quickstart's base and grown run together. Expected: the validation loss jumps by 0.09 at each growth
(4.31 to 4.41, 3.98 to 4.07) and ends at 3.67, where one hop ends at 3.70; the paper, at scale,
loses 2.4 points of average accuracy to one hop.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:scratch", __file__)
    c.init.growth.operator = "last"
    c.growth.stages = (
        {"steps": 400, "model": {"layers": 2}},
        {"steps": 400, "model": {"layers": 4}},
        {"steps": 1000},
    )
    return c
