"""Where do new layers go? Stacking, interpolation, the middle (MIDAS), partial and gradual.

    prts study --config=configs/study/placement.py:cpu --workdir=runs/study/placement

From a base of half the layers. `gradual` grows twice on the way, from a quarter of the layers.
"""

from prts_jax import config
from prts_jax.study import arms
from prts_jax.study.design import Arm, Study, equal_steps, flops_of_step


def get_study(size: str = "cpu"):
    c = config.inherit(f"sizes.py:{size}", __file__)
    smoke = size == "smoke"
    peaks = () if smoke else (c.schedule.peak / 2, c.schedule.peak)
    layers = c.model.layers
    half = arms.base(c, "half", {"model.layers": layers // 2}, 0.1, peaks)
    numbers = "".join(str(at + 1) for at in range(layers // 2))
    growths = {
        "stack": {"init.growth.operator": "stack"},
        "interpolate": {"init.growth.operator": "interpolate"},
        "middle": {"init.growth.operator": "middle", "init.growth.block": layers // 2},
        "front": {
            "init.growth.operator": "layers",
            "init.growth.layers": f"{numbers[0]}*{layers // 2 + 1}-{numbers[1:]}",
        },
    }
    if layers // 2 > 9:  # the notation has one digit a layer
        del growths["front"]
    everything = [half, arms.scratch(c, 1.0, peaks)]
    everything += [arms.grown(c, name, half, changes, peaks) for name, changes in growths.items()]
    if not smoke:
        everything.append(Arm("gradual", "grown", _gradual(c), peaks=peaks))
    title = "Where should the new layers of a model that doubles its depth go?"
    return Study(title, tuple(everything), seeds=(0, 1) if smoke else (0, 1, 2))


def _gradual(c):
    """Returns one run of three stages: a quarter, half and all of the layers."""
    total = c.train.steps * flops_of_step(config.resolve(c))
    spent, stages = 0.0, []
    for part in (4, 2):
        shallow = arms.changed_by(c, {"model.layers": c.model.layers // part})
        steps = equal_steps(0.1 * total, shallow)
        spent += steps * flops_of_step(config.resolve(shallow))
        stages.append({"steps": steps, "model": {"layers": c.model.layers // part}})
    gradual = arms.changed_by(c, {"init.growth.operator": "last"})
    gradual.growth.stages = (*stages, {"steps": equal_steps(total - spent, c)})
    return gradual
