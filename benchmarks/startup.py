"""Measures `prts train` of the quickstart's grown model for one step, from launch to exit.

A launch has compiled nothing before; a resume trains one more step and reads the programs that the
launch kept. Several trees of the repository take turns. Prints a line for each turn: CPU-seconds
and seconds.

    python benchmarks/startup.py --folder=DIR [--tree=DIR …] [--turns=2]
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.train import tiny

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--config=configs/quickstart.py:grown",
    "--config.init.grow_from=",
    "--config.data.validation=",
    "--config.evaluation.every_steps=0",
    "--config.schedule.warmup_steps=0",
    "--allow_change=train.steps",
)


def main() -> None:
    """Launches and resumes a run of each tree, turn by turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="new folder")
    parser.add_argument("--tree", type=Path, action="append", help="default: this one")
    parser.add_argument("--turns", type=int, default=2, help="launches of each tree")
    arguments = parser.parse_args()
    store, workdir = arguments.folder / "store", arguments.folder / "run"
    tiny.write_store(store, tokens=20_000, vocab=1024)
    for _ in range(arguments.turns):
        for tree in arguments.tree or [ROOT]:
            launch, resume = (_train(tree, store, workdir, steps) for steps in (1, 2))
            print(f"{tree}: launch {launch}, resume {resume}", flush=True)
            shutil.rmtree(workdir)
    shutil.rmtree(arguments.folder)


def _train(tree: Path, store: Path, workdir: Path, steps: int) -> str:
    """Trains up to a step; returns the CPU-seconds and seconds as text."""
    command = [sys.executable, "-m", "prts_jax.cli.train", *FLAGS, f"--workdir={workdir}"]
    command += [f"--config.data.train={store}", f"--config.train.steps={steps}"]
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    began, before = time.perf_counter(), _cpu_seconds()
    subprocess.run(command, cwd=tree, env=environment, stdout=subprocess.DEVNULL, check=True)
    return f"{_cpu_seconds() - before:.1f} CPU-s {time.perf_counter() - began:.1f} s"


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
