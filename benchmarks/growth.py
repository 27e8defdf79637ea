"""Times each executor of `prts grow` beside a plain copy of the bytes it makes, in the same run.

    python benchmarks/growth.py --folder=/big/disk --preset=paper_1.1b_base --factor=4
    python benchmarks/growth.py --folder=/big/disk --preset=paper_7b --layers=8 --factor=4

A source with random parameters is made once a run, layer by layer, so models larger than memory can
be made. Each growth is a process of its own. The plain copy is `dd conv=fsync` of the streamed
result's files. Prints one JSON object a line, growths last; everything made is removed.
"""

import argparse
import dataclasses
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from prts_jax.checkpoint import layout, leaves
from prts_jax.checkpoint.digest import LayerDigest
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.store import CHUNK_BYTES
from prts_jax.config import ModelConfig, RunConfig, to_dict
from prts_jax.model.declaration import Declaration
from prts_jax.model.llama import declare
from prts_jax.model.presets import preset


def main() -> None:
    """Makes a source, grows it by each mode, and prints what each took."""
    arguments = _parser().parse_args()
    model = preset(arguments.preset)
    if arguments.layers:
        model = dataclasses.replace(model, layers=arguments.layers)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = f"{folder}/source"
        start = time.monotonic()
        write_source(source, model)
        made = {"model": to_dict(model), "seconds": time.monotonic() - start}
        _print({"source": made | {"bytes": _size(source)}})
        streamed = _grow(source, f"{folder}/streamed", arguments.factor, "stream")
        copied = _copy(f"{folder}/streamed", f"{folder}/copy")
        _print(copied)
        shutil.rmtree(f"{folder}/streamed")
        linked = _grow(source, f"{folder}/linked", arguments.factor, "reference")
        for report in (streamed, linked):
            _print(report | {"ratio_to_copy": copied["seconds"] / report["seconds"]})


def write_source(path: str, model: ModelConfig) -> None:
    """Writes a checkpoint of random parameters with the memory of one layer."""
    rng = np.random.default_rng(0)
    digests = {}
    declarations = declare(model)
    for name, declaration in declarations.items():
        piece = _piece(declaration)
        leaf = leaves.create_leaf(path, name, declaration, piece)
        layer_shape = declaration.shape[1:] if declaration.stacked else declaration.shape
        found = [
            LayerDigest(layer_shape) for _ in range(model.layers if declaration.stacked else 1)
        ]
        grid = leaves.StoredLeaf(declaration.shape, np.dtype(declaration.dtype), piece, piece)
        for block in grid.blocks():
            shape = tuple(box.stop - box.start for box in block)
            values = rng.random(shape, np.float32).astype(declaration.dtype)
            leaf[block].write(values).result()
            origin = tuple(box.start for box in block)
            if declaration.stacked:
                found[origin[0]].update(values[0], origin[1:])
            else:
                found[0].update(values, origin)
        digests[name] = tuple(digest.hexdigest() for digest in found)
    leaves.write_tree(path, declarations)
    config = to_dict(RunConfig(model=model))
    layout.write_lineage(path, Lineage(0, 0, config, 0, 0, 0.0, 0.0, "", (), digests))


def _piece(declaration: Declaration) -> tuple[int, ...]:
    """Returns a shape of chunks like that of a save: a layer, or some rows of a vocabulary."""
    shape = declaration.shape
    if declaration.stacked:
        return (1, *shape[1:])
    row = int(np.prod(shape[1:])) * np.dtype(declaration.dtype).itemsize
    return (max(1, min(shape[0], CHUNK_BYTES // row)), *shape[1:])


def _grow(source: str, target: str, factor: int, mode: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "prts_jax.cli.grow", "--json", f"--mode={mode}"]
    start, used = time.monotonic(), _cpu_seconds()
    done = subprocess.run(
        [*command, f"--source={source}", f"--target={target}", f"--factor={factor}"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    report = json.loads(done.stdout)
    kept = ("mode", "seconds", "peak_rss_bytes", "bytes_read", "bytes_written", "bytes_linked")
    return {key: report[key] for key in kept} | {
        "command_seconds": time.monotonic() - start,
        "cpu_seconds": _cpu_seconds() - used,
    }


def _copy(source: str, target: str) -> dict[str, Any]:
    """Copies the bytes of a checkpoint's files into one file, down to the disk."""
    files = [str(file) for file in Path(source).rglob("*") if file.is_file()]
    start, used = time.monotonic(), _cpu_seconds()
    read = subprocess.Popen(["cat", *files], stdout=subprocess.PIPE)
    subprocess.run(
        ["dd", f"of={target}", "bs=16M", "iflag=fullblock", "conv=fsync", "status=none"],
        stdin=read.stdout,
        check=True,
    )
    read.wait()
    seconds, size = time.monotonic() - start, os.path.getsize(target)
    os.unlink(target)
    return {"mode": "copy", "seconds": seconds, "bytes": size, "cpu_seconds": _cpu_seconds() - used}


def _size(folder: str) -> int:
    return sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _print(values: dict[str, Any]) -> None:
    print(json.dumps(values), flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Time the executors of prts grow.")
    parser.add_argument("--folder", required=True, help="where to make the checkpoints")
    parser.add_argument("--preset", required=True, help="the model, by name (see presets.py)")
    parser.add_argument("--layers", type=int, default=0, help="of the source (default: preset's)")
    parser.add_argument("--factor", type=int, default=4, help="growth by stacking (default: 4)")
    return parser


if __name__ == "__main__":
    main()
