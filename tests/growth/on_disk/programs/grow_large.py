"""Grows a 4-layer model of width 640 by a factor; prints the peak memory of the growth alone."""

import os
import subprocess
import sys

from prts_jax.config import ModelConfig
from tests.growth.on_disk import growing

MODEL = ModelConfig(vocab=4096, layers=4, embed=640, heads=10, kv_heads=10, head_dim=64, mlp=1728)


def write_source(path: str) -> None:
    from prts_jax.checkpoint.store import save_checkpoint
    from prts_jax.model.architecture import declare
    from tests.checkpoint.tiny import lineage_of, random_params

    declarations = declare(MODEL)
    params = random_params(declarations)
    save_checkpoint(path, params, lineage_of(params, MODEL, declarations))


def main(folder: str, factor: int) -> None:
    source = f"{folder}/source"
    if not os.path.exists(source):
        subprocess.run([sys.executable, __file__, source], check=True)
    from prts_jax.growth.operators import make_map

    growth_map = make_map(MODEL, None, "stack", factor, "")
    print(growing.stream(source, f"{folder}/grown_{factor}", growth_map).peak_rss_bytes)


if len(sys.argv) == 2:
    write_source(sys.argv[1])
else:
    main(sys.argv[1], int(sys.argv[2]))
