"""Disturbs staged runs at random moments until they end, and compares the end.

A small run in two stages with growth is trained undisturbed. The same run is then started again
and again with `prts train`, in processes forked from one that has imported the program, each time
until a random moment (while it starts, trains, saves or grows), when one fault befalls it. Runs
take turns at three places:

* one host, on a local disk: `SIGKILL`; `SIGTERM`; `flip`, `cut`, `empty`, `delete`: SIGKILL, and
  one file of the newest checkpoint has a bit flipped, loses its second half, is emptied or is
  deleted; `half`: SIGKILL, and half of the files of the newest checkpoint are deleted. Where the
  folder's disk has less than 1 GB free, no byte of it is left: `full disk`, for 1 to 5 s, which a
  run that trains has to survive; `full disk, killed`, and SIGKILL then; `full disk for good`: the
  run has to end with 75 after its limit of a minute; `full disk at a start`: the process has not
  trained yet and may end with 75;
* an object store (a fake GCS server): `SIGKILL`; `SIGTERM`; `store answers 503` or `store is
  silent` for 1 to 8 s, which the run has to survive;
* several hosts: one or two processes with one or two devices, drawn anew at each start (`changed
  hosts`, `changed devices`); `killed host`: one of two dies, and the other has to end within two
  minutes with exit code 75; `SIGKILL`; `SIGTERM`, sent to one.

At its end a run is compared with the undisturbed one (metrics, parameters, optimizer state,
position, totals): to the bit at the first two places, to rounding on several hosts. Any other end,
exit code or hang is a failure. With --out the tally is kept in a file, and the next sitting with
the same file and seed goes on with the runs that come after it.

    python benchmarks/faults.py --folder=DIR [--faults=100] [--minutes=M] [--seed=0] [--out=FILE]
        [--places "one host" "several hosts"] [--kinds empty "full disk"]
"""

import argparse
import dataclasses
import json
import multiprocessing
import os
import platform
import random
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import fault_runs
from benchmarks.fault_kinds import PLACES, OneHost, moved_aside, object_store
from benchmarks.fault_runs import Failure, Job
from prts_jax.checkpoint.layout import complete_steps
from prts_jax.paths import as_path
from tests.conftest import CPU_ONLY

STARTING_SECONDS = 10.0


@dataclasses.dataclass
class Tally:
    """Everything that happened so far, over all sittings.

    Attributes:
      seed: decides on moments, kinds and damages, together with the number of the run.
      faults: by kind.
      events: a line for each fault: run, place, newest complete step, kind.
      failures: a line for each run that has failed.
      runs: that have ended, by place.
      aside: checkpoints that runs have moved aside.
      rounding: largest relative difference of a run on several hosts.
      sittings: command, faults, seconds, versions and machine of each.
    """

    seed: int
    faults: dict[str, int] = dataclasses.field(default_factory=dict)
    events: list[str] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    runs: dict[str, int] = dataclasses.field(default_factory=dict)
    aside: int = 0
    rounding: float = 0.0
    sittings: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> int:
        """Faults in all."""
        return sum(self.faults.values())

    def add(self, kind: str, event: str) -> None:
        """Counts a fault."""
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.events.append(event)
        print(f"{self.count} {event}", file=sys.stderr, flush=True)


@dataclasses.dataclass
class Sweep:
    """A sitting.

    Attributes:
      folder: for runs, config and logs.
      tally: of this sitting and those before.
      faults: how many there are to be in all.
      until: `time.monotonic()` after which there are no more.
      places: where runs take turns.
      kinds: from which faults are drawn; empty: all of the place.
    """

    folder: Path
    tally: Tally
    faults: int
    until: float
    places: Sequence[type[OneHost]] = PLACES
    kinds: Sequence[str] = ()

    def is_over(self) -> bool:
        """Whether there are no more faults; a run that is under way goes on to its end."""
        return self.tally.count >= self.faults or time.monotonic() > self.until

    def run(self, expected: dict[str, Any]) -> None:
        """Disturbs one run until it ends or has failed; `expected` is its right `end`."""
        number = sum(self.tally.runs.values())
        numbers = random.Random(f"{self.tally.seed}:{number}")
        of_run = self.places[number % len(self.places)]
        place, name = of_run(self.folder, numbers, self.kinds), f"run-{number}"
        self.tally.runs[place.name] = self.tally.runs.get(place.name, 0) + 1
        workdir = place.workdir(name)
        if as_path(workdir).exists():  # of a sitting that was stopped
            place.remove(workdir)
        try:
            self.disturb(place, workdir, name, numbers)
            found = fault_runs.difference(fault_runs.end(workdir), expected)
            if found > (0.0 if place.exact else fault_runs.ROUNDING):
                raise Failure(f"another end, by {found:.1e}")
            self.tally.rounding = max(self.tally.rounding, found)
            self.tally.aside += moved_aside(workdir)
            place.remove(workdir)
        except Failure as failure:
            self.tally.failures.append(f"{name}, {place.name}: {failure}")
            print(self.tally.failures[-1], file=sys.stderr, flush=True)

    def disturb(self, place: OneHost, workdir: str, name: str, numbers: random.Random) -> None:
        """Starts a run again and again until it ends, and disturbs it.

        Raises:
          Failure: it ends or hangs without a fault.
        """
        while True:
            job, changed = place.start(workdir, name)
            try:
                if changed:
                    self._count(place, workdir, name, changed)
                if self._until_gone(place, job, workdir, name, numbers):
                    return
            finally:
                job.end()

    def _until_gone(
        self, place: OneHost, job: Job, workdir: str, name: str, numbers: random.Random
    ) -> bool:
        """Disturbs a job until it has ended; returns whether it reached the end of the run."""
        while not self.is_over() and moment(job, numbers):
            kind, gone = place.fault(job, workdir)
            if kind:
                self._count(place, workdir, name, kind)
            if gone:
                return False
        if any(codes := job.codes()):
            raise Failure(f"exit codes {codes}: {job.last_line}")
        return True

    def _count(self, place: OneHost, workdir: str, name: str, kind: str) -> None:
        saved = complete_steps(f"{workdir}/checkpoints")
        self.tally.add(kind, f"{name} {place.name}, newest step {max(saved, default=None)}: {kind}")


def moment(job: Job, numbers: random.Random) -> bool:
    """Waits for a random moment of a job; returns whether it still runs.

    Raises:
      Failure: no line of metrics comes for a long time.
    """
    lines, pause = numbers.randrange(1, 30), numbers.uniform(0, 0.2)
    if numbers.random() < 0.5:
        lines, pause = 0, numbers.uniform(0, STARTING_SECONDS)
    joined = len(job.processes) > 1  # a host that waits for another to join does so for minutes
    patience = time.monotonic() + fault_runs.PATIENCE_SECONDS
    begun = job.output.count(" loss ")
    while job.alive:
        output = job.output
        if output.count(" loss ") >= begun + lines and (
            not joined or "processes have joined" in output
        ):
            break
        if time.monotonic() > patience:
            raise Failure(f"hangs: {job.last_line}")
        time.sleep(0.05)
    until = time.monotonic() + pause
    while time.monotonic() < until and job.alive:
        time.sleep(0.02)
    return job.alive


def read_tally(out: Path | None, seed: int) -> Tally:
    """Returns the tally of the sittings before."""
    if out is None or not out.exists():
        return Tally(seed)
    tally = Tally(**json.loads(out.read_text()))
    if tally.seed != seed:
        raise SystemExit(f"--out={out}: is of seed {tally.seed}; give --seed={tally.seed}")
    return tally


def write_tally(out: Path | None, tally: Tally) -> str:
    """Writes the tally to the file, if there is one, and returns its text."""
    text = json.dumps(dataclasses.asdict(tally), indent=1)
    if out is not None:
        out.write_text(text + "\n")
    return text


def sitting(faults: int, seconds: float) -> dict[str, Any]:
    """Returns the record of this sitting."""
    packages = ("jax", "orbax-checkpoint", "tensorstore", "gcsfs")
    return {
        "command": " ".join(sys.argv),
        "faults": faults,
        "seconds": round(seconds),
        "versions": {name: version(name) for name in packages},
        "Python": platform.python_version(),
        "cores": os.cpu_count(),
    }


def main() -> int:
    """Runs a sitting, prints the tally as JSON and returns 1 after a failure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="new directory for the runs")
    parser.add_argument("--faults", type=int, default=100, help="how many, over all sittings")
    parser.add_argument("--minutes", type=float, default=1e9, help="after which no fault is added")
    parser.add_argument("--seed", type=int, default=0, help="of kinds, moments and damages")
    names = [place.name for place in PLACES]
    parser.add_argument("--places", nargs="+", default=names, choices=names, help="in turns")
    parser.add_argument("--kinds", nargs="+", default=[], help="of faults; without it all")
    parser.add_argument("--out", type=Path, help="file of the tally, read and written")
    arguments = parser.parse_args()
    # As in the tests: programs that compile in a fifth of the time.
    os.environ |= CPU_ONLY | {"JAX_COMPILATION_CACHE_DIR": str(arguments.folder / "cache")}
    jax.config.update("jax_platforms", "cpu")  # jax is imported here and read the variable before
    multiprocessing.set_forkserver_preload(["__main__", "prts_jax.train.loop"])
    tally = read_tally(arguments.out, arguments.seed)
    expected, began, before = fault_runs.prepare(arguments.folder), time.monotonic(), tally.count
    sittings, until = list(tally.sittings), began + 60 * arguments.minutes
    places = [PLACES[names.index(name)] for name in arguments.places]
    sweep = Sweep(arguments.folder, tally, arguments.faults, until, places, arguments.kinds)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends all it runs
    text = write_tally(None, tally)
    with object_store():
        while not sweep.is_over():
            sweep.run(expected)
            seconds = time.monotonic() - began
            tally.sittings = [*sittings, sitting(tally.count - before, seconds)]
            text = write_tally(arguments.out, tally)
    print(text)
    return 1 if tally.failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
