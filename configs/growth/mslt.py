"""MSLT: 2 → 4 → 8 layers, each time training only what is new, and at last everything.

    prts train --config=configs/growth/mslt.py --workdir=runs/growth/mslt

Multi-stage layerwise training (Yang et al., arXiv 2011.13635): beside the new layers only the final
norm and the head are trained, so that the frozen layers below cost a forward pass. About the FLOPs
of the quickstart's base and grown run together. Expected: stages that end at a validation loss of
4.31, 4.06, 3.95 and 3.75; when at last everything is trained, it first rises again, to 4.05.
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
