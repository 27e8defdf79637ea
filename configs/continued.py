"""Pretraining continued from a checkpoint, grown or not, on a store of its own tokenizer.

    prts data cache --task=shakespeare --tokenizer=smollm2 --output=stores/plays
    prts train --config=configs/continued.py:grown,stores/plays --workdir=runs/continued

The argument is CHECKPOINT,STORES[,STEPS]. The checkpoint determines the model. docs/smollm2.md goes
through the whole path with SmolLM2.
"""

from prts_jax import config
from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.errors import UserError
from prts_jax.paths import as_path

STEPS = 1000


def get_config(argument: str = ""):
    checkpoint, stores, *steps = argument.split(",") if argument.count(",") in (1, 2) else [""] * 2
    if not checkpoint or not stores or not all(part.isdecimal() for part in steps):
        raise UserError("give CHECKPOINT,STORES[,STEPS], as in continued.py:grown,stores/c4")

    c = config.default_config()
    c.model = config.to_dict(read_lineage(resolve(checkpoint)).model)
    c.init.start_from = checkpoint
    c.data.train = f"{stores}/train"
    if (as_path(stores) / "validation").exists():
        c.data.validation = f"{stores}/validation"
    c.data.length, c.data.batch = 512, 16
    c.train.steps = int(steps[0] if steps else STEPS)
    c.schedule.kind = "cosine"
    c.schedule.peak, c.schedule.final = 1e-4, 1e-5
    c.schedule.warmup_steps = c.train.steps // 20
    c.schedule.decay_end = c.train.steps
    c.checkpoint.every_steps = c.evaluation.every_steps = 100
    c.logging.every_steps = 1
    return c
