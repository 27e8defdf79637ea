"""What becomes of the optimizer's state at growth? Four policies, three schedules, depth and width.

    prts study --config=configs/study/state.py:quick --workdir=runs/study/state

Every policy grows the same bases. In depth (G_stack) it meets a constant rate, a cosine restart and
WSD, in width (split) a constant rate. `keep` goes on with the count of steps and the schedule.
"""

from prts_jax import config
from prts_jax.study import arms
from prts_jax.study.design import Study

POLICIES = ("reset", "copy", "keep", "asymmetric")
SCHEDULES = ("constant", "cosine", "wsd")


def get_study(size: str = "cpu"):
    c = config.inherit(f"sizes.py:{size}", __file__)
    smoke = size == "smoke"
    peaks = () if smoke else (c.schedule.peak / 2, c.schedule.peak)
    halves = {f"model.{k}": c.model[k] // 2 for k in ("embed", "heads", "kv_heads", "mlp")}
    shallow = arms.base(c, "shallow", {"model.layers": c.model.layers // 4}, 0.1, peaks)
    narrow = arms.base(c, "narrow", halves, 0.1, peaks)
    c.init.growth.new_rate_steps = max(1, c.train.steps // 20)
    ways = [(f"depth-{schedule}", "stack", shallow, schedule) for schedule in SCHEDULES]
    ways.append(("width-constant", "split", narrow, "constant"))
    grown = [
        arms.grown(
            c,
            f"{policy}-{way}",
            base,
            {
                "init.growth.operator": operator,
                "init.growth.optimizer": policy,
                "schedule.kind": schedule,
            },
            peaks,
        )
        for way, operator, base, schedule in ways
        for policy in POLICIES
    ]
    title = "What should become of the optimizer's state at growth?"
    scratch = arms.scratch(arms.changed_by(c, {"schedule.kind": "cosine"}), 1.0, peaks)
    if smoke:
        return Study(title, (shallow, scratch, *grown[::3][:2]), seeds=(0, 1))
    return Study(title, (shallow, narrow, scratch, *grown))
