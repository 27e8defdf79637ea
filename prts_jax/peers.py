"""Watch over the other processes of a job: one that dies ends the others in seconds.

A collective waits for a dead process for minutes, and JAX then aborts. Here every process counts up
a key in JAX's coordination service; one whose count stands still is taken for dead. The service
runs in process 0: where that dies, JAX may abort first, see `prts_jax.cli.guard`.
"""

import os
import sys
import threading
import time
from typing import Any

from prts_jax.errors import UserError

BEAT_SECONDS = 2.0
"""Seconds between two counts of a process."""

DEAD_SECONDS = 20.0
"""Seconds without a count after which a process is taken for dead."""

EXIT_RESUMABLE = 75


def check_flags(coordinator: str, processes: int, process: int) -> None:
    """Checks the arguments that say how to join the other processes.

    Args:
      coordinator: HOST:PORT of process 0, or "".
      processes: number of processes; 0: not given.
      process: index of this one; -1: not given.

    Raises:
      UserError: an incomplete set, or an address that is not HOST:PORT.
    """
    if not coordinator:
        if process >= 0:
            raise UserError("--process: only with --coordinator=HOST:PORT; leave it out")
        return
    if processes < 1 or not 0 <= process < processes:
        raise UserError(
            "--coordinator: needs --processes=N and --process=0…N-1 as well; "
            f"got {processes} and {process}"
        )
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={coordinator}: is not HOST:PORT; add process 0's port")


def watch(client: Any, processes: int, process: int) -> None:
    """Starts the thread that counts for this process and watches the others.

    If one stands still, the thread prints a line that names it and ends this process with exit code
    75: the run resumes from its last checkpoint.

    Args:
      client: `jax.distributed`'s client of the coordination service.
      processes: number of processes.
      process: index of this one.
    """
    arguments = (client, processes, process)
    threading.Thread(target=_watch, args=arguments, name="peers", daemon=True).start()


def wait_for_verdict() -> None:
    """Gives the thread time to name the process whose death broke a collective."""
    time.sleep(DEAD_SECONDS + 3 * BEAT_SECONDS)


def _watch(client: Any, processes: int, process: int) -> None:
    seen: dict[str, tuple[str, float]] = {}
    count = 0
    while True:
        try:
            client.key_value_set(f"prts_jax/alive/{process}", str(count), allow_overwrite=True)
            counts = dict(client.key_value_dir_get("prts_jax/alive"))
        except Exception:  # the service is gone
            _end(f"process 0 of {processes} does not answer")
        now = time.monotonic()
        for key, value in counts.items():
            name = key.rpartition("/")[2]
            if value == "left":
                return  # a process has ended its run; its exit code says how
            if seen.get(name, ("", 0.0))[0] != value:
                seen[name] = value, now
            elif now - seen[name][1] > DEAD_SECONDS:
                silence = f"for {DEAD_SECONDS:.0f} s"
                _end(f"process {name} of {processes} does not answer {silence}")
        count += 1
        time.sleep(BEAT_SECONDS)


def leave(client: Any, process: int) -> None:
    """Tells the other processes that this one ends on its own."""
    client.key_value_set(f"prts_jax/alive/{process}", "left", allow_overwrite=True)


def _end(reason: str) -> None:
    print(
        f"prts train: {reason}; start the same command on all hosts, "
        "the run resumes from its last checkpoint",
        file=sys.stderr,
        flush=True,
    )
    os._exit(EXIT_RESUMABLE)
