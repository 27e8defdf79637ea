"""Does growth pay under Muon as it does under AdamW? G_stack and scratch with both.

    prts study --config=configs/study/optimizers.py:cpu --workdir=runs/study/optimizers
    prts study --config=configs/study/optimizers.py:cpu,muon --workdir=runs/study/muon

A study has one optimizer, so that scratch is measured against by runs of its own kind.
"""

from prts_jax import config
from prts_jax.study import arms
from prts_jax.study.design import Study


def get_study(argument: str = "cpu"):
    size, _, kind = argument.partition(",")
    c = config.inherit(f"sizes.py:{size}", __file__)
    c.optimizer.kind = kind or "adamw"
    smoke = size == "smoke"
    peak = c.schedule.peak
    peaks = () if smoke else (peak / 2, peak, 2 * peak)
    shallow = arms.base(c, "shallow", {"model.layers": c.model.layers // 4}, 0.1, peaks)
    policies = ("reset",) if smoke else ("reset", "copy")
    grown = [
        arms.grown(
            c,
            f"stack-{policy}",
            shallow,
            {"init.growth.operator": "stack", "init.growth.optimizer": policy},
            peaks,
        )
        for policy in policies
    ]
    title = f"Does G_stack pay under {c.optimizer.kind}?"
    everything = (shallow, arms.scratch(c, 1.0, peaks), *grown)
    return Study(title, everything, seeds=(0, 1) if smoke else (0, 1, 2))
