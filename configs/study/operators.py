"""Figure 3 of "Stacking Your Transformers" in small: eight operators and scratch, equal FLOPs.

    prts study --config=configs/study/operators.py:cpu --workdir=runs/study/operators

Depth operators grow from a base of a quarter of the layers, width operators from one of half the
width, each after 10% of the FLOPs. All rates are constant, so that runs compare at any point.
`operators.py:cpu,depth` is the half in depth; the whole study reuses its runs in the same workdir.
"""

from prts_jax import config
from prts_jax.errors import UserError
from prts_jax.study import arms
from prts_jax.study.design import Study

# Losses of Figure 3 (1.1B, 8e20 FLOPs), for the comparison of ranks.
DEPTH = {"stack": 2.151, "zero": 2.161, "random": 2.258, "learned": 2.156}
WIDTH = {"split": 2.209, "zero_width": 2.249, "random_width": 2.227, "learned": 2.233}
SCRATCH = 2.204


def get_study(argument: str = "cpu"):
    size, _, half = argument.partition(",")
    if half not in ("", "depth"):
        raise UserError(f"half {half!r}: give depth, or nothing for depth and width")
    c = config.inherit(f"sizes.py:{size}", __file__)
    smoke = size == "smoke"
    # The same rates are tried for all: scratch is swept as carefully as what is compared with it.
    peak = c.schedule.peak
    peaks = () if smoke else (peak / 2, peak)
    shallow = arms.base(c, "shallow", {"model.layers": c.model.layers // 4}, 0.1, peaks)
    halves = {f"model.{k}": c.model[k] // 2 for k in ("embed", "heads", "kv_heads", "mlp")}
    narrow = arms.base(c, "narrow", halves, 0.1, peaks)
    deeper, wider = (
        [
            arms.grown(c, f"{operator}-{way}", base, _growth(operator), peaks, loss)
            for operator, loss in losses.items()
        ]
        for way, base, losses in (("depth", shallow, DEPTH), ("width", narrow, WIDTH))
    )
    title = "Which operator grows a model best at equal FLOPs? (arXiv 2405.15319, Figure 3)"
    scratch = arms.scratch(c, 1.0, peaks, SCRATCH)
    if smoke:
        return Study(title, (shallow, scratch, *deeper[:2]), seeds=(0, 1))
    if half:
        return Study(title, (shallow, scratch, *deeper))
    return Study(title, (shallow, narrow, scratch, *deeper, *wider))


def _growth(operator: str) -> dict[str, object]:
    learning = {"init.growth.learn_steps": 40} if operator == "learned" else {}
    return {"init.growth.operator": operator, **learning}
