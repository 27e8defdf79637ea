"""Places where `benchmarks/faults.py` disturbs a run: one host, an object store, several hosts.

Each draws a fault from its kinds, lets it befall a job, and says which exit codes that may cause.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.damaged_files import DAMAGES, Case, apply
from benchmarks.fault_runs import Failure, Job, start
from prts_jax.checkpoint.layout import complete_steps, contents
from prts_jax.paths import as_path
from tests.gcs import BUCKET, Outage, serve, variables

SMALL_DISK = 1 << 30
BOUNDED_SECONDS = 120.0
"""In which the other hosts have to end when one has died."""

DAMAGING = (*DAMAGES, "half")
KILLED, TERMINATED = -signal.SIGKILL, -signal.SIGTERM


class OneHost:
    """A process whose workdir is a local folder; the end is the same to the bit."""

    name = "one host"
    exact = True

    def __init__(self, folder: Path, numbers: random.Random, wanted: Collection[str] = ()) -> None:
        """Makes the place of one run.

        Args:
          folder: holds the run's config.
          numbers: decide.
          wanted: kinds to draw from; empty: all.
        """
        self.folder, self.numbers = folder, numbers
        self.kinds = [kind for kind in self.all_kinds() if not wanted or kind in wanted]
        self._damaged = set[int]()

    def all_kinds(self) -> list[str]:
        """Returns the kinds of faults, some more often than others."""
        kinds = ["SIGKILL", "SIGTERM", *DAMAGING]
        if shutil.disk_usage(self.folder).free < SMALL_DISK:
            kinds += ["full disk", "full disk, killed", "full disk for good"]
        return kinds

    def workdir(self, name: str) -> str:
        """Returns the folder of a run."""
        return str(self.folder / name)

    def start(self, workdir: str, name: str) -> tuple[Job, str]:
        """Starts the run; returns the job, and a fault that lies in this start or ""."""
        return start(self.folder, workdir, name), ""

    def fault(self, job: Job, workdir: str) -> tuple[str, bool]:
        """Lets a fault befall the job; returns its kind, and whether the job has ended of it.

        Raises:
          Failure: the job ended otherwise than the fault allows.
        """
        kind = self.numbers.choice(self.kinds)
        [process] = job.processes
        if kind.startswith("full disk"):
            trains = " loss " in job.output
            _fill(self.folder, job, 1e9 if "good" in kind else self.numbers.uniform(1, 5))
            if kind == "full disk" and job.alive and trains:
                return kind, False
            if not trains:  # a start that cannot write its first files may end with 75
                kind = "full disk at a start"
        if kind == "SIGTERM":
            process.terminate()
        elif kind not in ("full disk", "full disk for good"):
            process.kill()
        [code] = job.codes()
        if code == 0:
            return "", True  # the run had ended before
        # Before Python has installed a handler, SIGTERM ends the process.
        allowed = {
            "SIGTERM": (75, TERMINATED),
            "full disk": (),
            "full disk at a start": (KILLED, 75),
            "full disk for good": (75,),
        }.get(kind, (KILLED,))
        if code not in allowed:
            raise Failure(f"{kind}: exit code {code}: {job.last_line}")
        return self._damage(kind, workdir) if kind in DAMAGING else kind, True

    def _of_one(self, job: Job, workdir: str, kinds: list[str]) -> tuple[str, bool]:
        """Lets one of the kinds befall a job of one process; see `fault`."""
        self.kinds, before = kinds, self.kinds
        try:
            return OneHost.fault(self, job, workdir)
        finally:
            self.kinds = before

    def _damage(self, kind: str, workdir: str) -> str:
        """Damages the newest checkpoint, if an intact one is left to resume from."""
        saved = complete_steps(f"{workdir}/checkpoints") if Path(workdir).exists() else []
        if len([s for s in saved if s not in self._damaged]) < 2 or saved[-1] in self._damaged:
            return "SIGKILL"
        self._damaged.add(saved[-1])
        checkpoint = Path(workdir) / "checkpoints" / str(saved[-1])
        files = sorted(path for path in checkpoint.rglob("*") if path.is_file())
        if kind == "half":
            for file in self.numbers.sample(files, -(-len(files) // 2)):
                file.unlink()
        else:
            chosen = str(self.numbers.choice(files).relative_to(checkpoint))
            apply(Case(chosen, kind, self.numbers.randrange(2**32)), checkpoint)
        return kind

    def remove(self, workdir: str) -> None:
        """Deletes a finished run."""
        shutil.rmtree(workdir)


class ObjectStore(OneHost):
    """A process whose workdir is on gs://, behind a proxy that can be away."""

    name = "object store"
    proxy: Outage

    def all_kinds(self) -> list[str]:
        """See `OneHost`."""
        # A kill is dear: the next start waits until the lock of the killed process is stale.
        return ["SIGKILL", "SIGTERM", *["store answers 503", "store is silent"] * 2]

    def workdir(self, name: str) -> str:
        """Returns the address of a run."""
        return f"gs://{BUCKET}/{name}"

    def fault(self, job: Job, workdir: str) -> tuple[str, bool]:
        """See `OneHost`; the job has to survive an outage of some seconds."""
        kind = self.numbers.choice(self.kinds)
        if kind.startswith("SIG"):
            return self._of_one(job, workdir, [kind])
        with self.proxy.away(503 if "503" in kind else None):
            time.sleep(self.numbers.uniform(1, 8))
        return kind, False

    def remove(self, workdir: str) -> None:
        """Deletes a finished run."""
        as_path(workdir).rmtree()


class SeveralHosts(OneHost):
    """One or two processes with one or two devices, another choice at each start."""

    name = "several hosts"
    exact = False
    shapes = ((1, 1), (1, 2), (2, 1), (2, 1))
    _shape = (0, 0)

    def __init__(self, folder: Path, numbers: random.Random, wanted: Collection[str] = ()) -> None:
        """See `OneHost`."""
        super().__init__(folder, numbers, wanted)
        if "changed devices" in wanted and "changed hosts" not in wanted:
            self.shapes = ((1, 1), (1, 2))

    def all_kinds(self) -> list[str]:
        """See `OneHost`."""
        return ["SIGKILL", "SIGTERM", "killed host", "killed host"]

    def start(self, workdir: str, name: str) -> tuple[Job, str]:
        """See `OneHost`; a start on another number of hosts or devices is a fault."""
        hosts, devices = self.numbers.choice(self.shapes)
        before, self._shape = self._shape, (hosts, devices)
        changed = ""
        if before[0] and before[0] != hosts:
            changed = "changed hosts"
        elif before[0] and before[1] != devices:
            changed = "changed devices"
        return start(self.folder, workdir, name, hosts, devices), changed

    def fault(self, job: Job, workdir: str) -> tuple[str, bool]:
        """See `OneHost`; where one of two hosts dies, the other has to end soon with 75."""
        of_two = [kind for kind in self.kinds if kind != "SIGKILL"]
        if len(job.processes) == 1 or not of_two:
            return self._of_one(job, workdir, ["SIGKILL", "SIGTERM"])
        kind = self.numbers.choice(of_two)
        victim = self.numbers.choice(job.processes)
        if kind == "SIGTERM":
            victim.terminate()
            allowed = [(75, TERMINATED, 0)] * 2
        else:
            victim.kill()
            allowed = [(KILLED,) if process is victim else (75,) for process in job.processes]
        codes = job.codes(BOUNDED_SECONDS)
        if codes == [0, 0] or (kind == "killed host" and 0 in codes):
            return "", True  # the run was at its end
        if not all(code in of_one for code, of_one in zip(codes, allowed, strict=True)):
            raise Failure(f"{kind}: exit codes {codes}: {job.last_line}")
        return kind, True


PLACES: tuple[type[OneHost], ...] = (OneHost, ObjectStore, SeveralHosts)


@contextmanager
def object_store() -> Iterator[None]:
    """Runs the fake server and its proxy, to which all processes are pointed."""
    with serve() as server:
        ObjectStore.proxy = Outage(server)
        os.environ |= variables(ObjectStore.proxy.url)
        try:
            yield
        finally:
            ObjectStore.proxy.close()


def moved_aside(workdir: str) -> int:
    """Returns the number of checkpoints that a run has moved aside."""
    return len(contents(f"{workdir}/checkpoints").aside)


def _fill(folder: Path, job: Job, seconds: float) -> None:
    """Leaves no free byte on the folder's disk until the job ends, or for seconds."""
    ballast, until = folder / "ballast", time.monotonic() + seconds
    with ballast.open("wb", buffering=0) as file:
        while time.monotonic() < until and job.alive:
            try:
                file.write(bytes(4096))
            except OSError:
                time.sleep(0.05)
    ballast.unlink()
