"""What becomes of the optimizer's state at growth? Reset, copy, keep, asymmetric; depth and width.

    prts study --config=configs/study/state.py:cpu --workdir=runs/study/state

Rates are constant, so `copy` and `keep` differ only in the warm-up after growth.
"""

from prts_jax import config
from prts_jax.study import arms
from prts_jax.study.design import Study

POLICIES = ("reset", "copy", "keep", "asymmetric")


def get_study(size: str = "cpu"):
    c = config.inherit(f"sizes.py:{size}", __file__)
    smoke = size == "smoke"
    peaks = () if smoke else (c.schedule.peak / 2, c.schedule.peak)
    halves = {f"model.{k}": c.model[k] // 2 for k in ("embed", "heads", "kv_heads", "mlp")}
    shallow = arms.base(c, "shallow", {"model.layers": c.model.layers // 4}, 0.1, peaks)
    narrow = arms.base(c, "narrow", halves, 0.1, peaks)
    c.init.growth.new_rate_steps = max(1, c.train.steps // 20)
    grown = [
        arms.grown(
            c,
            f"{policy}-{way}",
            base,
            {"init.growth.operator": operator, "init.growth.optimizer": policy},
            peaks,
        )
        for way, operator, base in (("depth", "stack", shallow), ("width", "split", narrow))
        for policy in POLICIES
    ]
    title = "What should become of the optimizer's state at growth?"
    scratch = arms.scratch(c, 1.0, peaks)
    if smoke:
        return Study(title, (shallow, scratch, *grown[::3][:2]), seeds=(0, 1))
    return Study(title, (shallow, narrow, scratch, *grown))
