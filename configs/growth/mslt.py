"""MSLT: 2 → 4 → 8 layers; grown stages train only new layers, the last stage all layers.

    prts train --config=configs/growth/mslt.py --workdir=runs/growth/mslt

Multi-stage layerwise training (Yang et al., arXiv 2011.13635): besides the new layers only the
final norm and the head are trained, so the frozen layers below cost only a forward pass. Needs
about as many FLOPs as the quickstart's base and grown run together. Expected: the stages end at
validation losses of 4.31, 4.06, 3.95 and 3.75; early in the last stage the loss rises to 4.05.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:scratch", __file__)
    c.init.growth.operator = "last"
    new = {"trainable": "new"}
    c.growth.stages = (
        {"steps": 400, "model": {"layers": 2}},
        {"steps": 400, "model": {"layers": 4}, "train": new},
        {"steps": 400, "train": new},
        {"steps": 800},
    )
    return c
