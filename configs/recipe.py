"""The paper's recipe as one run: base, growth on the mesh, target, as stages of one config.

    prts train --config=configs/recipe.py:1.1b --workdir=gs://BUCKET/1.1b \
        --config.data.train=gs://BUCKET/slimpajama/train

Sizes and values are those of `configs/paper.py`: 5,000 steps of the base, then G_stack by a factor
of 4 and the target's steps. `tpu_scripts/recipe.sh` runs it unattended on Cloud TPU, with export
and evaluation at the end. Source: Du et al., arXiv 2405.15319.
"""

from prts_jax import config


def get_config(argument: str = "1.1b"):
    base = config.inherit(f"paper.py:{argument},base", __file__)
    c = config.inherit(f"paper.py:{argument},grown", __file__)
    c.init.growth.operator = "stack"
    c.growth.stages = (
        {
            "steps": base.train.steps,
            "model": {"layers": base.model.layers},
            "schedule": {"peak": base.schedule.peak},
        },
        {"steps": c.train.steps},
    )
    return c
