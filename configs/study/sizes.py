"""Sizes of the shipped studies: the scratch run at the whole budget, which all arms derive from.

`smoke` takes minutes and shows nothing but that the parts fit; `quick` is for the quickstart's
text, `cpu` for more text, both on two cores; `gpu` is for one H100; `paper` has the paper's 410M
shapes and is meant for a pod.

    make text-small
    prts study --config=configs/study/operators.py:cpu --workdir=runs/study/operators
"""

from prts_jax import config
from prts_jax.errors import UserError

SIZES = {
    # name: (vocab, layers, embed, heads, head_dim, mlp, batch, length, steps, warmup, peak, dtype)
    "smoke": (1024, 4, 32, 2, 16, 64, 8, 64, 40, 4, 4e-3, "float32"),
    "quick": (1024, 4, 48, 2, 24, 128, 8, 128, 400, 20, 4e-3, "float32"),
    "cpu": (1024, 8, 64, 2, 32, 176, 8, 128, 800, 40, 4e-3, "float32"),
    "gpu": (32000, 12, 640, 10, 64, 1728, 64, 512, 1500, 100, 1e-3, "bfloat16"),
    "paper": (32000, 24, 1024, 16, 64, 2816, 1024, 2048, 48000, 3000, 6e-4, "bfloat16"),
}
STORES = {
    "smoke": "runs/shakespeare",
    "quick": "runs/shakespeare",
    "cpu": "runs/text-small",
}  # the others: runs/text


def get_config(size: str = "cpu"):
    if size not in SIZES:
        raise UserError(f"size {size!r} is none of {', '.join(SIZES)}")
    vocab, layers, embed, heads, head_dim, mlp, batch, length, steps, warmup, peak, dtype = SIZES[
        size
    ]
    c = config.default_config()
    c.model = config.to_dict(
        config.ModelConfig(
            vocab=vocab,
            layers=layers,
            embed=embed,
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            mlp=mlp,
        )
    )
    c.compute.dtype = dtype
    store = STORES.get(size, "runs/text")
    c.data.train, c.data.validation = f"{store}/train", f"{store}/validation"
    c.data.batch, c.data.length = batch, length
    c.schedule.kind = "constant"
    c.schedule.peak, c.schedule.warmup_steps = peak, warmup
    c.train.steps = steps
    c.evaluation.every_steps = max(1, steps // (4 if size == "quick" else 8))
    c.evaluation.tokens = 4096 if size == "smoke" else 0
    c.evaluation.blocks = 16
    c.logging.every_steps = max(1, steps // 200)
    c.logging.tensorboard = False
    c.checkpoint.keep = 1
    return c
