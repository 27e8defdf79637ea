"""Disturbs a staged run at random moments until it ends, and compares the end bit for bit.

A small run in two stages with growth is trained undisturbed. The same run is then started again and
again with `prts train`, in a process forked from one that has imported the program, each time until
a random moment (while it starts, trains, saves or grows), when one fault befalls it:

* `SIGKILL`; `SIGTERM`;
* `flip`, `cut`, `empty`, `delete`: SIGKILL, and one file of the newest checkpoint has a bit
  flipped, loses its second half, is emptied or is deleted;
* `half`: SIGKILL, and half of the files of the newest checkpoint are deleted;
* `full disk`, where the folder's disk has less than 1 GB free: for some seconds nothing is left.

At its end the run is compared with the undisturbed one (metrics, parameters, optimizer state,
position, totals) and begins anew in another folder, until all faults are done. Any other end, exit
code or hang is a failure.

    python benchmarks/faults.py --folder=DIR [--faults=100] [--minutes=M] [--seed=0] [--out=FILE]
"""

import argparse
import collections
import dataclasses
import gc
import json
import multiprocessing
import os
import platform
import random
import shutil
import signal
import sys
import time
from importlib.metadata import version
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.damaged_files import DAMAGES, Case, apply
from prts_jax import cli
from prts_jax.checkpoint.layout import complete_steps, read_lineage
from prts_jax.config import to_dict
from prts_jax.train.metrics import read_metrics
from tests.train import tiny

STAGES = ({"steps": 100, "model": {"layers": 1}}, {"steps": 100})
LAST = 200
KINDS = ("SIGKILL", "SIGTERM", *DAMAGES, "half")
STARTING_SECONDS = 10.0
PATIENCE_SECONDS = 1200.0
SMALL_DISK = 1 << 30
STOPPED = {
    "SIGKILL": (-signal.SIGKILL,),
    # Before Python has installed a handler, SIGTERM ends the process.
    "SIGTERM": (75, -signal.SIGTERM),
    "full disk": (-signal.SIGKILL, 75),
}
"""Exit codes that a fault may cause; damages follow a SIGKILL."""


class Failure(Exception):
    """A run that did not survive a fault; the text says why."""


@dataclasses.dataclass
class Sweep:
    """Faults of one seed.

    Attributes:
      folder: for runs, config and logs.
      numbers: decides on kinds, moments and damages.
      kinds: of faults to draw from.
      faults: how many there are in all.
      until: `time.monotonic()` after which there are no more.
      tally: faults by kind.
      events: a line for each fault: run, newest complete step, kind, exit code.
      failures: a line for each run that has failed.
      runs: so far.
      aside: checkpoints that runs have moved aside.
    """

    folder: Path
    numbers: random.Random
    kinds: tuple[str, ...]
    faults: int
    until: float
    tally: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    events: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    runs: int = 0
    aside: int = 0

    def is_over(self) -> bool:
        """Whether there are no more faults."""
        return sum(self.tally.values()) >= self.faults or time.monotonic() > self.until

    def run(self, expected: tuple[Any, ...]) -> None:
        """Disturbs one run until it ends or has failed; `expected` is its right `end`."""
        name, self.runs = f"run-{self.runs}", self.runs + 1
        try:
            workdir = self.disturbed(name)
            if end(workdir) != expected:
                raise Failure("another end")
            self.aside += len(list(workdir.glob("checkpoints/*.damaged-*")))
            shutil.rmtree(workdir)
        except Failure as failure:
            self.failures.append(f"{name}: {failure}")

    def results(self) -> dict[str, Any]:
        """Returns what happened so far, with versions and machine."""
        return {
            "command": " ".join(sys.argv),
            "faults": sum(self.tally.values()),
            "tally": dict(self.tally),
            "runs": self.runs,
            "checkpoints moved aside": self.aside,
            "failures": self.failures,
            "versions": {
                name: version(name) for name in ("jax", "orbax-checkpoint", "tensorstore")
            },
            "Python": platform.python_version(),
            "cores": os.cpu_count(),
            "events": self.events,
        }

    def disturbed(self, name: str) -> Path:
        """Starts a run until it ends, disturbs it, and returns its workdir."""
        workdir, damaged = self.folder / name, set[int]()
        while True:
            log = self.folder / f"{name}.log"
            process = start(self.folder, workdir, log)
            try:
                ended = wait(process) if self.is_over() else self._moment(process, log)
                if ended:
                    if process.exitcode:
                        raise Failure(f"exit code {process.exitcode}: {last_line(log)}")
                    return workdir
                self._fault(process, workdir, damaged, log)
            finally:
                process.kill()
                process.join()

    def _moment(self, process: BaseProcess, log: Path) -> bool:
        """Waits for a random moment; returns whether the process has ended before."""
        if self.numbers.random() < 0.5:
            lines, pause = 0, self.numbers.uniform(0, STARTING_SECONDS)
        else:
            lines, pause = self.numbers.randrange(1, 40), self.numbers.uniform(0, 0.2)
        patience = time.monotonic() + PATIENCE_SECONDS
        while log.read_text().count(" loss ") < lines and process.is_alive():
            if time.monotonic() > patience:
                raise Failure(f"hangs: {last_line(log)}")
            time.sleep(0.05)
        until = time.monotonic() + pause
        while time.monotonic() < until and process.is_alive():
            time.sleep(0.02)
        return not process.is_alive()

    def _fault(self, process: BaseProcess, workdir: Path, damaged: set[int], log: Path) -> None:
        kind = self.numbers.choice(self.kinds)
        if kind == "full disk":
            fill(self.folder, process, self.numbers.uniform(1, 5))
        if kind == "SIGTERM":
            process.terminate()
        else:
            process.kill()
        wait(process)
        if process.exitcode == 0:
            return  # the run had ended before
        saved = complete_steps(str(workdir / "checkpoints")) if workdir.exists() else []
        if kind in (*DAMAGES, "half"):
            # The run resumes from the checkpoint before, which must not be damaged as well.
            if len([step for step in saved if step not in damaged]) < 2 or saved[-1] in damaged:
                kind = "SIGKILL"
            else:
                self._damage(kind, workdir / "checkpoints" / str(saved[-1]))
                damaged.add(saved[-1])
        self.tally[kind] += 1
        newest = saved[-1] if saved else None
        self.events.append(f"{workdir.name} {newest} {kind} {process.exitcode}")
        print(f"{sum(self.tally.values())} {self.events[-1]}", file=sys.stderr, flush=True)
        if process.exitcode not in STOPPED.get(kind, STOPPED["SIGKILL"]):
            raise Failure(f"{kind}: exit code {process.exitcode}: {last_line(log)}")

    def _damage(self, kind: str, checkpoint: Path) -> None:
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        if kind == "half":
            for file in self.numbers.sample(files, -(-len(files) // 2)):
                file.unlink()
            return
        file = str(self.numbers.choice(files).relative_to(checkpoint))
        apply(Case(file, kind, self.numbers.randrange(2**32)), checkpoint)


def start(folder: Path, workdir: Path, log: Path) -> BaseProcess:
    """Starts `prts train`, whose output replaces the log."""
    log.write_text("")
    process = multiprocessing.get_context("forkserver").Process(
        target=_run, args=(f"--config={folder / 'config.json'}", f"--workdir={workdir}", log)
    )
    process.start()
    return process


def _run(config: str, workdir: str, log: Path) -> None:
    gc.freeze()  # collections need not visit what the parent has imported
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.exit(cli.main(["train", config, workdir]))


def wait(process: BaseProcess) -> bool:
    """Waits for the end of a process and returns True."""
    process.join(PATIENCE_SECONDS)
    if process.is_alive():
        raise Failure(f"hangs for {PATIENCE_SECONDS:.0f} s")
    return True


def fill(folder: Path, process: BaseProcess, seconds: float) -> None:
    """Leaves no free byte on the folder's disk until the process ends, or for seconds."""
    ballast, until = folder / "ballast", time.monotonic() + seconds
    with ballast.open("wb", buffering=0) as file:
        while time.monotonic() < until and process.is_alive():
            try:
                file.write(bytes(4096))
            except OSError:
                time.sleep(0.05)
    ballast.unlink()


def last_line(log: Path) -> str:
    """Returns the last line of a log."""
    return (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]


def end(workdir: Path) -> tuple[Any, ...]:
    """Returns everything that has to be the same at the end of two runs."""
    lineage = read_lineage(str(workdir / "checkpoints" / str(LAST)))
    totals = (lineage.step, lineage.position, lineage.tokens, lineage.flops, lineage.growth)
    params = {
        name: (array.shape, array.tobytes())
        for name, array in tiny.stored_params(str(workdir)).items()
    }
    lines = tiny.curve(read_metrics(str(workdir)))
    done = (workdir / "DONE").exists()
    return lines, totals, lineage.digests, lineage.optimizer_digests, params, done


def prepare(folder: Path) -> Path:
    """Writes data and config, trains the undisturbed run and returns its workdir.

    A finished one of the same version, which an earlier sweep has left there, is taken as it is.
    """
    if (folder / "undisturbed/DONE").exists():
        return folder / "undisturbed"
    folder.mkdir(parents=True, exist_ok=True)
    store = str(tiny.write_store(folder / "store", tokens=40_000).directory)
    config = tiny.run_config(
        data__train=store,
        data__validation="",
        growth__stages=STAGES,
        checkpoint__every_steps=5,
        checkpoint__keep=4,
    )
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    process = start(folder, folder / "undisturbed", folder / "undisturbed.log")
    wait(process)
    if process.exitcode:
        raise Failure(f"undisturbed: {last_line(folder / 'undisturbed.log')}")
    return folder / "undisturbed"


def main() -> int:
    """Runs the sweep, prints its results as JSON and returns 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="new directory for the runs")
    parser.add_argument("--faults", type=int, default=100, help="how many")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no fault is added")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, moments and damages")
    parser.add_argument("--out", type=Path, help="file for the results, written after each run")
    arguments = parser.parse_args()
    os.environ |= {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(arguments.folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    multiprocessing.set_forkserver_preload(["__main__", "prts_jax.train.loop"])
    expected, began = end(prepare(arguments.folder)), time.monotonic()
    small = shutil.disk_usage(arguments.folder).free < SMALL_DISK
    kinds = (*KINDS, "full disk") if small else KINDS
    until = began + 60 * arguments.minutes
    sweep = Sweep(arguments.folder, random.Random(arguments.seed), kinds, arguments.faults, until)
    text = ""
    while not sweep.is_over():
        sweep.run(expected)
        text = json.dumps(sweep.results() | {"seconds": round(time.monotonic() - began)}, indent=2)
        if arguments.out:
            arguments.out.write_text(text + "\n")
    print(text)
    return 1 if sweep.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
