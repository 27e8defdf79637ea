"""Growth in the stable phase of a warm-up–stable–decay schedule, late in the run.

    prts train --config=configs/growth/wsd.py --workdir=runs/growth/wsd

As in arXiv 2511.04981: 2% warm-up, one growth at 0.8 of the steps, the same rate before and after
it, and a decay over the last 10%. A quarter of the layers trains for most of the run. The moments
grow with the parameters. Other tips of the same trunk are
branches: the same command in another workdir with
`--config.init.branch_from=runs/growth/wsd@1500`.
"""

from prts_jax import config


def get_config():
    c = config.inherit("../quickstart.py:scratch", __file__)
    c.schedule.kind, c.schedule.after_growth = "wsd", "keep"
    c.schedule.warmup, c.schedule.decay, c.schedule.final = "2%", "10%", 0.0
    c.checkpoint.keep_every_tokens = 250 * c.data.batch * c.data.length  # places to branch from
    c.init.growth.operator, c.init.growth.optimizer = "stack", "keep"
    c.growth.stages = (
        {"steps": 1360, "model": {"layers": 2}},
        {"steps": 340},
    )
    return c
