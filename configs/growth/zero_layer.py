"""Growth from zero layers, or from one, to eight layers in one step.

    prts train --config=configs/growth/zero_layer.py --workdir=runs/growth/zero_layer

Without layers the model is a bigram table and costs almost nothing. arXiv 2511.04981 starts from
it, keeps the rate of a WSD schedule through the growth and grows late. "zero_layer.py:one" starts
from one layer and stacks it. Expected validation losses: 4.38 without layers, 6.98 right after
growth (the fresh layers act immediately), 3.77 at the start of the decay and 3.55 at the end.
"""

from prts_jax import config
from prts_jax.errors import UserError


def get_config(start: str = "zero"):
    c = config.inherit("../quickstart.py:scratch", __file__)
    if start not in ("zero", "one"):
        raise UserError(f"start {start!r} is none of zero, one")
    c.schedule.kind, c.schedule.after_growth = "wsd", "rewarm"
    c.schedule.decay_start, c.schedule.decay_end = 1360, 1700
    c.init.growth.operator = "random" if start == "zero" else "stack"
    if start == "zero":
        c.init.growth.gate_steps = 0  # as in the paper, new layers act immediately
    c.growth.stages = (
        {"steps": 400, "model": {"layers": 0 if start == "zero" else 1}},
        {"steps": 1300},
    )
    return c
