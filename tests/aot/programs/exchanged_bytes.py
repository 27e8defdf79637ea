"""Prints what a device exchanges in a step of every shipped run for TPUs, as one JSON object.

Run by test_contract.py with eight virtual devices. XLA partitions each run's step for four devices
of every slice; rows of a device are those on the TPUs, and so are the bytes that it gathers and
reduces. CPUs exchange float32 where TPUs exchange bfloat16.
"""

import dataclasses
import json
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import jax

from prts_jax.aot.hlo import collective_kind, executed, mesh_axes, parse
from prts_jax.aot.programs import lower_train_step
from prts_jax.config import resolve
from prts_jax.mesh import use_mesh
from prts_jax.model.architecture import declare

CONFIG = runpy.run_path(str(Path(__file__).parents[3] / "configs" / "tpu.py"))
CHIPS = 4
QUICKLY = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
"""Options of XLA: machine code is not run, and collectives come before it."""


def exchanged(name: str) -> dict[str, Any]:
    """Returns bytes of the collectives of a step, and those of parts of the run in float32.

    `exchanged` holds [kind, mesh axes joined by "+", bytes] of each kind and axes.
    """
    _, _, slices, rows, *_ = CONFIG["RUNS"][name]
    config = resolve(CONFIG["get_config"](name))
    config = dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, batch=rows * CHIPS * slices),
        compute=dataclasses.replace(config.compute, attention="xla"),
    )
    with use_mesh(config.mesh, jax.devices()[: CHIPS * slices]) as mesh:
        compiled = lower_train_step(config, mesh).compile(compiler_options=QUICKLY)
    totals: dict[tuple[str, str], int] = {}
    for each in executed(parse(compiled.as_text() or "")):
        if kind := collective_kind(each.instruction):
            key = kind, "+".join(mesh_axes(each.instruction, mesh.shape))
            totals[key] = totals.get(key, 0) + each.times * each.instruction.bytes
    model = config.model
    return {
        "exchanged": [[*key, total] for key, total in totals.items()],
        "parameters": 4 * sum(math.prod(d.shape) for d in declare(model).values()),
        "table": 4 * model.vocab * model.embed,
        "activation": 4 * rows * config.data.length * model.embed,
        "chunks": config.compute.loss_chunks,
    }


if __name__ == "__main__":
    json.dump({name: exchanged(name) for name in CONFIG["RUNS"]}, sys.stdout)
