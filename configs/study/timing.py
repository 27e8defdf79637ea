"""When to grow? G_stack after 5% to 40% of the FLOPs.

    prts study --config=configs/study/timing.py:cpu --workdir=runs/study/timing

The paper's equation 4 says when (`prts plan`); this study measures it at a size of one's own.
"""

from prts_jax import config
from prts_jax.study import arms
from prts_jax.study.design import Study

SHARES = (0.05, 0.1, 0.2, 0.4)


def get_study(size: str = "cpu"):
    c = config.inherit(f"sizes.py:{size}", __file__)
    smoke = size == "smoke"
    peaks = () if smoke else (c.schedule.peak / 2, c.schedule.peak)
    c.init.growth.operator = "stack"
    everything = [arms.scratch(c, 1.0, peaks)]
    for share in SHARES[1:3] if smoke else SHARES:
        fewer = {"model.layers": c.model.layers // 4}
        base = arms.base(c, f"shallow-{share:.0%}".rstrip("%"), fewer, share, peaks)
        everything += [base, arms.grown(c, f"after-{share:.0%}".rstrip("%"), base, {}, peaks)]
    title = "After which share (in %) of the FLOPs should a model grow?"
    return Study(title, tuple(everything), seeds=(0, 1) if smoke else (0, 1, 2))
