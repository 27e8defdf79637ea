"""The start of a job of several processes, one a host."""

import atexit
import os
import sys
from typing import Any

import jax
from jax._src import distributed

from prts_jax import peers
from prts_jax.errors import Interrupted, UserError, first_line

JOIN_SECONDS = 300
"""Seconds that a process waits for the others to join."""

HEARTBEAT_SECONDS = 60
"""Seconds after which JAX itself aborts for a dead process; `peers` notices earlier."""

COORDINATOR_PORT = "8476"
"""jax moved its default to 8482, which the firewall of some TPU pods does not open (jax#35905)."""


def start_distributed(
    multihost: bool = False, coordinator: str = "", processes: int = 0, process: int = -1
) -> tuple[int, int]:
    """Starts `jax.distributed` where there is more than one host, before the first device call.

    Args:
      multihost: join the other hosts of this TPU slice (or Slurm job, …) as jax detects them.
      coordinator: HOST:PORT of process 0, where jax detects nothing; needs the next two.
      processes: number of processes; checked against those that joined. 0: not checked.
      process: index of this one.

    Returns:
      (processes that joined, index of this one).

    Raises:
      UserError: an incomplete set of arguments, or another number of processes than given.
      Interrupted: the other processes do not join in time.
    """
    # Decides nothing where there are accelerators; on CPUs nothing else works across processes.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    peers.check_flags(coordinator, processes, process)
    if coordinator:
        _join(f"{processes} processes at {coordinator}", coordinator, processes, process)
    elif multihost:
        os.environ.setdefault("JAX_COORDINATOR_PORT", COORDINATOR_PORT)
        _join("the other hosts of this slice")
    if processes and jax.process_count() != processes:
        raise UserError(
            f"--processes: {processes} expected, {jax.process_count()} joined; start the same "
            "command on every host"
        )
    return jax.process_count(), jax.process_index()


def coordination_client() -> Any:
    """Returns the client of JAX's coordination service; None in a process alone."""
    return distributed.global_state.client if jax.process_count() > 1 else None


def _join(
    what: str,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Runs `jax.distributed.initialize` and watches the other processes from then on.

    Raises:
      Interrupted: the others do not answer in time.
    """
    print(f"waiting up to {JOIN_SECONDS} s for {what}", file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except RuntimeError as error:
        raise Interrupted(
            f"{what} did not join ({first_line(error)}); see that the same command runs on every "
            "host and that they reach one another"
        ) from error
    client = distributed.global_state.client
    peers.watch(client, jax.process_count(), jax.process_index())
    atexit.register(peers.leave, client, jax.process_index())
