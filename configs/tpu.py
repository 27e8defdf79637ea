"""Runs whose shapes, batches and rematerialisation are chosen for a TPU slice.

    prts aot --config=configs/tpu.py:llama2_7b_v5e-256 --topology=v5e:16x16
    prts train --config=configs/tpu.py:llama2_7b_v5e-256 --workdir=gs://BUCKET/7b \
        --config.data.train=gs://BUCKET/slimpajama/train

`RUNS` states for each the preset, the topology, what fits it, and the memory and the MFU that the
TPU compiler expects; `benchmarks/aot.md` has the time as well. Sizes of the paper grow by a factor
of 4: the run NAME,base trains a quarter of the layers, and NAME,grown grows it from
config.init.grow_from.
"""

import dataclasses

from prts_jax import config
from prts_jax.errors import UserError
from prts_jax.model.presets import preset

# name: (preset, topology, slices, sequences per chip, length, remat, chunks of the loss, data)
# Behind each: memory of a chip and bound of the MFU, by the compiler.
RUNS = {
    "410m_v5e-16": ("paper_410m", "v5e:4x4", 1, 8, 2048, "save_qkv", 2, 1),  # 8.4 GiB, 37%
    "1.1b_v5e-16": ("paper_1.1b", "v5e:4x4", 1, 4, 2048, "save_qkv", 2, 1),  # 9.1 GiB, 45%
    "1.1b_2xv5e-16": ("paper_1.1b", "v5e:4x4", 2, 4, 2048, "save_qkv", 2, 2),  # 9.4 GiB, 45%
    "1.1b_v6e-16": ("paper_1.1b", "v6e:4x4", 1, 8, 2048, "minimal", 2, 1),  # 25.6 GiB, 24%
    "3b_v5e-64": ("paper_3b", "v5e:8x8", 1, 4, 2048, "save_qkv", 2, 1),  # 5.7 GiB, 58%
    "7b_v5e-256": ("paper_7b", "v5e:16x16", 1, 4, 2048, "full", 2, 1),  # 4.1 GiB, 57%
    "7b_v5p-128": ("paper_7b", "v5p:4x4x4", 1, 8, 2048, "minimal", 2, 1),  # 39.5 GiB, 63%
    "llama2_7b_v5e-256": ("llama2_7b", "v5e:16x16", 1, 2, 4096, "full", 4, 1),  # 4.2 GiB, 63%
    "llama2_7b_v5p-128": ("llama2_7b", "v5p:4x4x4", 1, 4, 4096, "minimal", 2, 1),  # 46.1 GiB, 67%
    "llama3_8b_v5p-512": ("llama3_8b", "v5p:4x8x8", 1, 4, 8192, "save_qkv", 4, 1),  # 36.2 GiB, 64%
    "llama3_8b_v6e-256": ("llama3_8b", "v6e:16x16", 1, 2, 8192, "full", 4, 1),  # 9.9 GiB, 35%
    "llama2_70b_v5p-512": ("llama2_70b", "v5p:4x8x8", 1, 2, 4096, "full", 1, 1),  # 20.4 GiB, 63%
    "llama2_70b_v6e-256": ("llama2_70b", "v6e:16x16", 1, 1, 4096, "full", 1, 1),  # 12.8 GiB, 42%
    "qwen3_8b_v5p-128": ("qwen3_8b", "v5p:4x4x4", 1, 4, 4096, "save_qkv", 4, 1),  # 21.5 GiB, 58%
}


def chips(topology: str) -> int:
    """Returns the chips of one slice, such as 64 of "v5p:4x4x4"."""
    count = 1
    for edge in topology.partition(":")[2].split("x"):
        count *= int(edge)
    return count


def get_config(argument: str = "1.1b_v5e-16"):
    name, _, run = argument.partition(",")
    if name not in RUNS:
        raise UserError(f"{name!r} is none of {', '.join(RUNS)}")
    if run not in ("", "base", "grown"):
        raise UserError(f"run {run!r} is none of base, grown")
    shape, topology, slices, rows, length, remat, chunks, data = RUNS[name]
    model = preset(shape)
    if run == "base":
        model = dataclasses.replace(model, layers=model.layers // 4)
    c = config.default_config()
    c.model = config.to_dict(model)
    c.compute.dtype, c.compute.remat, c.compute.loss_chunks = "bfloat16", remat, chunks
    c.mesh.data = data
    c.data.length, c.data.batch = length, rows * chips(topology) * slices
    c.optimizer.weight_decay = 0.1
    c.schedule.warmup_steps = 3_000
    c.checkpoint.every_steps = 1_000
    c.evaluation.every_steps = 1_000
    return c
