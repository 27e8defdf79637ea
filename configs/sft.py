"""Supervised fine-tuning of a pretrained checkpoint, grown or not, on instructions.

    prts data instructions --input=alpaca.jsonl --tokenizer=llama.model --length=2048 \
        --held_out=0.02 --output=stores/alpaca
    prts train --config=configs/sft.py:runs/grown,stores/alpaca --workdir=runs/sft

The argument is CHECKPOINT,STORES[,EPOCHS]. The checkpoint determines the model, the store the row
length. The paper fine-tunes its grown model (Du et al., arXiv 2405.15319, Table 2), but its
settings are not available here. Rate, warm-up, decay, weight decay and epochs are those of Stanford
Alpaca. The batch size differs, because a row holds several examples.
"""

from data_pipelines.store.store import TokenStore
from prts_jax import config
from prts_jax.checkpoint.layout import read_lineage, resolve
from prts_jax.errors import UserError
from prts_jax.paths import as_path

EPOCHS = 3
WARMUP_PERCENT = 3


def get_config(argument: str = ""):
    checkpoint, stores, *epochs = argument.split(",") if argument.count(",") in (1, 2) else [""] * 2
    if not checkpoint or not stores or not all(part.isdecimal() for part in epochs):
        raise UserError(
            "give CHECKPOINT,STORES[,EPOCHS], as in configs/sft.py:runs/grown,stores/sft"
        )
    store = TokenStore.open(f"{stores}/train")
    if not store.packed:
        raise UserError(f"{stores} does not say what is an answer: see `prts data instructions`")
    rows = store.tokens // (store.packed + 1)

    c = config.default_config()
    c.model = config.to_dict(read_lineage(resolve(checkpoint)).model)
    c.init.start_from = checkpoint
    c.data.train = f"{stores}/train"
    if (as_path(stores) / "validation").exists():
        c.data.validation = f"{stores}/validation"
    c.data.instructions, c.data.documents, c.data.overlap = True, True, False
    c.data.length, c.data.batch = store.packed, 16
    c.optimizer.weight_decay = 0.0
    # A reference: an override of the batch size changes steps and schedule too.
    steps = -(-rows * int(epochs[0] if epochs else EPOCHS) // c.data.get_ref("batch"))
    c.train.steps = steps
    c.schedule.kind = "cosine"
    c.schedule.peak, c.schedule.final = 2e-5, 0.0
    c.schedule.warmup_steps = steps * WARMUP_PERCENT // 100
    c.schedule.decay_end = steps
    c.checkpoint.every_steps = c.evaluation.every_steps = 100
    c.logging.every_steps = 1
    return c
