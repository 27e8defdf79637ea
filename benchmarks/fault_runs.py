"""Runs that `benchmarks/faults.py` disturbs: their processes, and the end that two runs share."""

import dataclasses
import gc
import json
import multiprocessing
import os
import socket
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax
import numpy as np

from prts_jax import cli
from prts_jax.checkpoint.layout import read_lineage
from prts_jax.config import to_dict
from prts_jax.paths import as_path
from prts_jax.train.metrics import read_metrics
from tests.train import tiny

STAGES = ({"steps": 40, "model": {"layers": 1}}, {"steps": 40})
LAST = 80
PATIENCE_SECONDS = 1200.0
ROUNDING = 1e-4
"""Largest relative difference of a loss, and of a parameter to the largest of its leaf, where the
number of devices has changed; a lost or repeated batch differs by some 1e-1."""


class Failure(Exception):
    """A run that did not survive a fault; the text says why."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A start of a run: its processes, one a host, and the logs of their output."""

    processes: list[BaseProcess]
    logs: list[Path]

    @property
    def output(self) -> str:
        """What the first process has written so far."""
        return self.logs[0].read_text(errors="replace")

    @property
    def alive(self) -> bool:
        """Whether all processes run."""
        return all(process.is_alive() for process in self.processes)

    @property
    def last_line(self) -> str:
        """The last line of each log."""
        texts = [log.read_text(errors="replace").strip().splitlines() for log in self.logs]
        return " | ".join((lines or ["no output"])[-1] for lines in texts)

    def codes(self, patience: float | None = None) -> list[int]:
        """Waits for the end of all processes and returns their exit codes, -N for signal N.

        Raises:
          Failure: one has not ended within so many seconds.
        """
        patience = PATIENCE_SECONDS if patience is None else patience
        until = time.monotonic() + patience
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
            if process.is_alive():
                raise Failure(f"hangs for {patience:.0f} s: {self.last_line}")
        return [_code(process) for process in self.processes]

    def end(self) -> None:
        """Kills what is left."""
        for process in self.processes:
            process.kill()
            process.join()


def _code(process: BaseProcess) -> int:
    """Returns an exit code; the trainer of several hosts gives 128 + N for signal N."""
    code = process.exitcode or 0
    return 128 - code if 128 < code < 160 else code


def start(folder: Path, workdir: str, name: str, hosts: int = 1, devices: int = 1) -> Job:
    """Starts `prts train` with the config in `folder` on local processes as hosts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes, logs = [], []
    for host in range(hosts):
        log = folder / (f"{name}-{host}.log" if host else f"{name}.log")
        log.write_text("")
        arguments = [f"--config={folder / 'config.json'}", f"--workdir={workdir}"]
        if hosts > 1:
            joined = (f"--coordinator=localhost:{port}", f"--processes={hosts}")
            arguments += [*joined, f"--process={host}"]
        process = multiprocessing.get_context("forkserver").Process(
            target=_run, args=(arguments, log, devices, dict(os.environ))
        )
        process.start()
        processes.append(process)
        logs.append(log)
    return Job(processes, logs)


def _run(arguments: list[str], log: Path, devices: int, environment: dict[str, str]) -> None:
    gc.freeze()  # collections need not visit what the parent has imported
    os.environ.update(environment)  # the server that forks may be older
    jax.config.update("jax_num_cpu_devices", devices)
    with log.open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.exit(cli.main(["train", *arguments]))


def end(workdir: str) -> dict[str, Any]:
    """Returns everything that two runs share at their end."""
    lineage = read_lineage(str(as_path(workdir) / "checkpoints" / str(LAST)))
    return {
        "totals": (lineage.step, lineage.position, lineage.tokens, lineage.flops),
        "maps": [(record.at_step, record.map) for record in lineage.growth],
        "done": (as_path(workdir) / "DONE").exists(),
        "lines": tiny.curve(read_metrics(workdir)),
        "digests": (lineage.digests, lineage.optimizer_digests),
        "params": tiny.stored_params(workdir),
    }


def difference(found: dict[str, Any], expected: dict[str, Any]) -> float:
    """Returns how far two ends differ: 0.0 if not in a bit, otherwise the relative rounding.

    Raises:
      Failure: anything but rounding differs.
    """
    for key in ("totals", "maps", "done"):
        if found[key] != expected[key]:
            raise Failure(f"another end: {key}")
    if [line["position"] for line in found["lines"]] != [
        line["position"] for line in expected["lines"]
    ]:
        raise Failure("another end: a batch is lost or repeated")
    same = all(found[key] == expected[key] for key in ("lines", "digests"))
    params = [found["params"][name] for name in expected["params"]]
    pairs = list(zip(params, expected["params"].values(), strict=True))
    if same and all(one.tobytes() == other.tobytes() for one, other in pairs):
        return 0.0
    losses = [
        [line["loss"] for line in run["lines"] if "loss" in line] for run in (found, expected)
    ]
    of_losses = float(np.max(np.abs(np.array(losses[0]) / np.array(losses[1]) - 1)))
    of_params = max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)
    return max(of_losses, of_params, sys.float_info.min)


def prepare(folder: Path) -> dict[str, Any]:
    """Writes data and config, trains the undisturbed run and returns its end.

    A finished one of the same version, which an earlier sitting has left there, is taken as it is.
    """
    workdir = folder / "undisturbed"
    if not (workdir / "DONE").exists():
        folder.mkdir(parents=True, exist_ok=True)
        store = str(tiny.write_store(folder / "store", tokens=40_000).directory)
        config = tiny.run_config(
            data__train=store,
            data__validation="",
            growth__stages=STAGES,
            checkpoint__every_steps=5,
            checkpoint__keep=4,
            checkpoint__retry_minutes=1.0,
        )
        (folder / "config.json").write_text(json.dumps(to_dict(config)))
        job = start(folder, str(workdir), "undisturbed")
        if any(job.codes()):
            raise Failure(f"undisturbed: {job.last_line}")
    return end(str(workdir))
