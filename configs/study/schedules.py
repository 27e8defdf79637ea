"""Does growth pay under schedules that decay? Cosine restart, WSD and a constant rate.

    prts study --config=configs/study/schedules.py:cpu --workdir=runs/study/schedules

Scratch is trained at several budgets, each with a cosine schedule of its own that ends with it:
speed-ups are read off the curve through the ends of these runs. The largest budget is half as large
again as the grown runs', so that the curve reaches their losses if growth saves up to a third.
"""

from prts_jax import config
from prts_jax.study import arms
from prts_jax.study.design import Study

BUDGETS = (0.6, 1.0, 1.5)


def get_study(size: str = "cpu"):
    c = config.inherit(f"sizes.py:{size}", __file__)
    smoke = size == "smoke"
    peaks = () if smoke else (c.schedule.peak / 2, c.schedule.peak)
    shallow = arms.base(c, "shallow", {"model.layers": c.model.layers // 4}, 0.1, peaks)
    c.init.growth.operator = "stack"
    finished = arms.changed_by(c, {"schedule.kind": "cosine"})
    everything = [shallow]
    everything += [
        arms.scratch(finished, budget, peaks) for budget in (BUDGETS[:2] if smoke else BUDGETS)
    ]
    everything += [
        arms.grown(c, f"stack-{kind}", shallow, {"schedule.kind": kind}, peaks)
        for kind in (("cosine",) if smoke else ("cosine", "wsd", "constant"))
    ]
    title = "Does G_stack pay when every run has a finished schedule of its own?"
    return Study(title, tuple(everything), seeds=(0, 1) if smoke else (0, 1, 2))
