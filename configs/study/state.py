"""What becomes of the optimizer's state at growth? Four policies under three schedules.

    prts study --config=configs/study/state.py:quick --workdir=runs/study/state
    prts study --config=configs/study/state.py:quick,width --workdir=runs/study/state-width

Every policy grows the same bases, in depth (G_stack) or in width (split). `keep` goes on with the
count of steps and the schedule.
"""

from prts_jax import config
from prts_jax.errors import UserError
from prts_jax.study import arms
from prts_jax.study.design import Study

POLICIES = ("reset", "copy", "keep", "asymmetric")
SCHEDULES = ("constant", "cosine", "wsd")


def get_study(argument: str = "cpu"):
    size, _, way = argument.partition(",")
    way = way or "depth"
    if way not in ("depth", "width"):
        raise UserError(f"way {way!r}: give depth or width")
    c = config.inherit(f"sizes.py:{size}", __file__)
    smoke = size == "smoke"
    peaks = () if smoke else (c.schedule.peak / 2, c.schedule.peak)
    if way == "depth":
        operator, name, smaller = "stack", "shallow", {"model.layers": c.model.layers // 4}
    else:
        operator, name = "split", "narrow"
        smaller = {f"model.{k}": c.model[k] // 2 for k in ("embed", "heads", "kv_heads", "mlp")}
    base = arms.base(c, name, smaller, 0.1, peaks)
    c.init.growth.new_rate_steps = max(1, c.train.steps // 20)
    grown = [
        arms.grown(
            c,
            f"{policy}-{way}-{schedule}",
            base,
            {
                "init.growth.operator": operator,
                "init.growth.optimizer": policy,
                "schedule.kind": schedule,
            },
            peaks,
        )
        for schedule in SCHEDULES
        for policy in POLICIES
    ]
    scratch = arms.scratch(arms.changed_by(c, {"schedule.kind": "cosine"}), 1.0, peaks)
    title = "What should become of the optimizer's state at growth?"
    if smoke:
        return Study(title, (base, scratch, *grown[::3][:2]), seeds=(0, 1))
    return Study(title, (base, scratch, *grown))
