"""Times each executor of `prts grow` beside a plain copy of the same bytes, in turns, in one run.

    python benchmarks/growth.py --folder=/big/disk --preset=paper_1.1b_base --factor=4
    python benchmarks/growth.py --folder=/big/disk --preset=llama2_7b --layers=8 --factor=4
    python benchmarks/growth.py --folder=/big/disk --preset=paper_1.1b --layers=1 \
        --operator=zero_width --widths=embed=4096,mlp=11008,heads=64,kv_heads=64

A source with random parameters is made once a run, layer by layer, so models larger than memory can
be made. Each growth is a process of its own. The plain copy is `dd conv=fsync` of the source's
files, again and again up to the bytes that the growth writes; both find the source in the system's
cache where it fits. Each is removed before the next starts, so the disk holds the source and one
result. Prints one JSON object a line, the medians last; everything made is removed.
"""

import argparse
import dataclasses
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from prts_jax.checkpoint import arrays, layout
from prts_jax.checkpoint.digests import LayerDigest
from prts_jax.checkpoint.items import CHUNK_BYTES
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.config import ModelConfig, RunConfig, to_dict
from prts_jax.declaration import Declaration
from prts_jax.growth.on_disk import grow
from prts_jax.growth.on_disk.plan import plan
from prts_jax.growth.operators import make_map
from prts_jax.model.architecture import declare
from prts_jax.model.presets import preset


def main() -> None:
    """Makes a source, copies and grows it in turns, and prints what each took."""
    arguments = _parser().parse_args()
    model = preset(arguments.preset)
    if arguments.layers:
        model = dataclasses.replace(model, layers=arguments.layers)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        source = f"{folder}/source"
        start = time.monotonic()
        write_source(source, model)
        built = {"model": to_dict(model), "seconds": time.monotonic() - start}
        _print({"source": built | {"bytes": _size(source)}})
        options = {"factor": arguments.factor}
        modes = ["copy", "stream", "reference"]
        if arguments.widths:
            options = {"widths": arguments.widths}
            modes.remove("reference")
        written = _bytes_grown(source, arguments.operator, options)
        reports: dict[str, list[dict[str, Any]]] = {mode: [] for mode in modes}
        for turn in range(arguments.turns):
            for mode, earlier in reports.items():
                target = f"{folder}/{mode}"
                if mode == "copy":
                    report = _copy(source, target, written)
                else:
                    report = _grow(source, target, mode, {"operator": arguments.operator} | options)
                earlier.append(report)
                _print({"turn": turn, "load_average": os.getloadavg()[0]} | report)
                shutil.rmtree(target, ignore_errors=True)
        for report in _medians(reports):
            _print(report)


def write_source(path: str, model: ModelConfig) -> None:
    """Writes a checkpoint of random parameters with the memory of one layer."""
    rng = np.random.default_rng(0)
    digests = {}
    declarations = declare(model)
    for name, declaration in declarations.items():
        piece = _piece(declaration)
        leaf = arrays.create_leaf(path, name, declaration, piece)
        layer_shape = declaration.shape[1:] if declaration.stacked else declaration.shape
        actual = [
            LayerDigest(layer_shape) for _ in range(model.layers if declaration.stacked else 1)
        ]
        grid = arrays.StoredLeaf(declaration.shape, np.dtype(declaration.dtype), piece, piece)
        for block in grid.blocks():
            shape = tuple(box.stop - box.start for box in block)
            values = rng.random(shape, np.float32).astype(declaration.dtype)
            leaf[block].write(values).result()
            origin = tuple(box.start for box in block)
            if declaration.stacked:
                actual[origin[0]].update(values[0], origin[1:])
            else:
                actual[0].update(values, origin)
        digests[name] = tuple(digest.hexdigest() for digest in actual)
    arrays.write_tree(path, declarations)
    config = to_dict(RunConfig(model=model))
    layout.write_lineage(path, Lineage(0, 0, config, 0, 0, 0.0, 0.0, "", (), digests))


def _piece(declaration: Declaration) -> tuple[int, ...]:
    """Returns a shape of chunks like that of a save: some rows of a layer, or of a vocabulary."""
    first = 1 if declaration.stacked else 0
    elements = CHUNK_BYTES // np.dtype(declaration.dtype).itemsize
    rows = arrays.split_rows(declaration.shape[first:], elements)
    return (*[1] * first, *rows)


def _grow(source: str, target: str, mode: str, options: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "prts_jax.cli.grow", "--json", f"--mode={mode}"]
    command += [f"--{name}={value}" for name, value in options.items()]
    start, used = time.monotonic(), _cpu_seconds()
    done = subprocess.run(
        [*command, f"--source={source}", f"--target={target}"],
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


def _bytes_grown(source: str, operator: str, options: dict[str, Any]) -> int:
    growth_map = make_map(layout.read_lineage(source).model, None, operator, **options)
    return grow.choose(plan(source, f"{source}.grown", growth_map), "stream").bytes_written


def _copy(source: str, target: str, size: int) -> dict[str, Any]:
    """Copies files of a checkpoint, over and over up to `size` bytes, into one file on the disk."""
    os.makedirs(target)
    files = sorted(str(file) for file in Path(source).rglob("*") if file.is_file())
    start, used, left = time.monotonic(), _cpu_seconds(), size
    for file in itertools.cycle(files):
        part = min(left, os.path.getsize(file))
        left -= part
        end = "conv=notrunc" if left else "conv=notrunc,fsync"
        command = ["dd", f"if={file}", f"of={target}/copy", "bs=16M", f"count={part}", end]
        flags = ["iflag=count_bytes", "oflag=append", "status=none"]
        subprocess.run([*command, *flags], check=True)
        if not left:
            break
    return {
        "mode": "copy",
        "seconds": time.monotonic() - start,
        "bytes_written": size,
        "cpu_seconds": _cpu_seconds() - used,
    }


def _medians(reports: dict[str, list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """Yields for each mode the medians over the turns, and its rate as a share of the copy's."""
    copy = statistics.median(report["seconds"] for report in reports["copy"])
    for mode, turns in reports.items():
        seconds = statistics.median(report["seconds"] for report in turns)
        yield {
            "mode": mode,
            "median_seconds": seconds,
            "median_cpu_seconds": statistics.median(report["cpu_seconds"] for report in turns),
            "peak_rss_bytes": max(report.get("peak_rss_bytes", 0) for report in turns),
            "rate_over_copy": copy / seconds,
        }


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
    parser.add_argument("--operator", default="stack", help="of the growth (default: stack)")
    parser.add_argument("--widths", default="", help="growth in width instead, as prts grow's")
    parser.add_argument("--turns", type=int, default=3, help="of each (default: 3)")
    return parser


if __name__ == "__main__":
    main()
