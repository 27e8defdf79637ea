"""Conversion of a model of a given shape: wall against a plain copy of its bytes, and peak memory.

    python benchmarks/convert.py --preset=paper_1.1b --folder=DIR

Makes a Hugging Face folder of that shape (random bfloat16 weights, one tensor at a time), copies it
(cp and fsync), converts it to Orbax and back, each in a process of its own, and prints a table.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from prts_jax.config import ModelConfig
from prts_jax.formats import config_json, huggingface, safetensors_files
from prts_jax.formats.model_source import leaf_layers, torch_shape
from prts_jax.model.architecture import declare
from prts_jax.model.presets import preset


def make_folder(folder: Path, model: ModelConfig) -> int:
    """Writes a model of random weights and returns its bytes."""
    declarations = declare(model)
    random = np.random.default_rng(0).integers(0, 2**14, 2**20, np.uint16)
    dtype = safetensors_files.dtype_named("bfloat16")

    def tensor(path: str, layer: int | None) -> safetensors_files.NewTensor:
        shape = torch_shape(declarations[path])

        def make() -> np.ndarray:
            return np.resize(random, shape).view(dtype)

        name = huggingface.tensor_name(model, path, layer)
        return safetensors_files.NewTensor(name, shape, dtype, make)

    folder.mkdir(parents=True)
    tensors = [tensor(path, layer) for path, layer in leaf_layers(model)]
    safetensors_files.write_folder(str(folder), tensors, 5_000_000_000, lambda count: None)
    values = config_json.config_json(model, "bfloat16", 2048)
    config_json.write_json(str(folder), config_json.CONFIG, values)
    return sum(tensor.nbytes for tensor in tensors)


def plain_copy(source: Path, target: Path) -> float:
    """Copies a folder, on the disk and not in its cache alone; returns seconds."""
    began = time.monotonic()
    shutil.copytree(source, target)
    for path in target.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return time.monotonic() - began


def convert(*flags: str) -> dict[str, float]:
    """Runs `prts convert` in a process of its own and returns its report."""
    command = [sys.executable, "-m", "prts_jax.cli.convert", "--json", *flags]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    report: dict[str, float] = json.loads(done.stdout)
    return report


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="paper_1.1b", help="shape, as 6L2048H or llama2_7b")
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to measure")
    arguments = parser.parse_args()
    root = arguments.folder / "convert_benchmark"
    hf, ours, back = root / "hf", root / "ours", root / "back"
    try:
        size = make_folder(hf, preset(arguments.preset))
        copied = plain_copy(hf, root / "copy")
        shutil.rmtree(root / "copy")
        rows = [
            (
                "hf → orbax (float32)",
                convert("--from=hf", "--to=orbax", f"--source={hf}", f"--target={ours}"),
            )
        ]
        shutil.rmtree(hf)
        flags = ("--dtype=bfloat16", f"--source={ours}", f"--target={back}")
        rows.append(("orbax → hf (bfloat16)", convert("--from=orbax", "--to=hf", *flags)))
        load = " ".join(f"{value:.1f}" for value in os.getloadavg())
        cores = os.cpu_count()
        print(f"{arguments.preset}, Python {platform.python_version()}, {cores} cores, load {load}")
        rate = size / copied
        print(f"plain copy, {size / 1e9:.2f} GB with fsync: {copied:.1f} s, {rate / 1e6:.0f} MB/s")
        print(
            f"{'':24} {'written':>10} {'seconds':>9} {'MB/s':>7} {'of copy':>8} {'peak memory':>12}"
        )
        for name, report in rows:
            rate = report["bytes_written"] / report["seconds"]
            print(
                f"{name:24} {report['bytes_written'] / 1e9:>7.2f} GB {report['seconds']:>9.1f} "
                f"{rate / 1e6:>7.0f} {rate / (size / copied):>8.2f} "
                f"{report['peak_rss_bytes'] / 1e9:>9.2f} GB"
            )
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
