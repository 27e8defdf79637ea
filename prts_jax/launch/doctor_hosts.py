"""Checks of hosts that run: their number, their Python, and a sum over all of them."""

import re
import shlex
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from prts_jax.errors import UserError
from prts_jax.launch import rent, workers
from prts_jax.launch.finding import Finding
from prts_jax.launch.gcloud import Command, Result, Runner
from prts_jax.launch.settings import Settings

_PYTHON = f"{workers.ROOT}/venv/bin/python"
_VERSIONS = 'import sys, jax; print(sys.version.split()[0], "jax", jax.__version__)'
_PROBE = (
    f"[ ! -x {_PYTHON} ] || v=$({_PYTHON} -c {shlex.quote(_VERSIONS)}); "
    'echo "host $(hostname) ${v-}"'
)

_ALL_REDUCE = (
    "import jax; jax.distributed.initialize(); import numpy as n; "
    "from jax.experimental import multihost_utils as m; "
    "print('sum', int(m.process_allgather(n.ones(1)).sum()), 'of', jax.process_count())"
)


def check(settings: Settings, run: Runner) -> list[Finding]:
    """Checks host count and Python of running hosts, and a sum over all where they are idle."""
    service, size = rent.service_of(settings)
    expected = size.hosts * settings.slices
    again = f"prts tpu delete --name={settings.name} --zone={settings.zone}, then create it again"
    try:
        results = _at_once(run, service.on_hosts(settings, size, run, _PROBE, "all"))
    except UserError as error:
        return [Finding("hosts", str(error), again)]
    lines = [line for r in results for line in r.stdout.splitlines() if line.startswith("host ")]
    findings = [
        Finding(
            "hosts", f"{len(lines)} of {expected} answer", "" if len(lines) == expected else again
        )
    ]
    bare = [line.split()[1] for line in lines if len(line.split()) < 4]
    if bare:
        text = f"not set up: {', '.join(bare)}"
        findings.append(Finding("Python of hosts", text, "prts tpu setup --source=…"))
        return findings
    versions = sorted({" ".join(line.split()[2:]) for line in lines})
    text = "; ".join(versions)
    findings.append(Finding("Python of hosts", text, again if len(versions) > 1 else ""))
    # On Compute Engine only the start-up script tells the slices of one another.
    if len(lines) == expected and (size.backend == "queued" or settings.slices == 1):
        findings.append(_all_reduce(settings, run, expected))
    return findings


def _at_once(run: Runner, commands: Sequence[Command]) -> list[Result]:
    """Runs commands side by side: each host of a collective waits for the others."""
    with ThreadPoolExecutor(len(commands)) as threads:
        return list(threads.map(run, commands))


def _all_reduce(settings: Settings, run: Runner, expected: int) -> Finding:
    """Sums a one from each host."""
    service, size = rent.service_of(settings)
    python = f"timeout 120 {_PYTHON} -c {shlex.quote(_ALL_REDUCE)}"
    lock = f"flock --nonblock --conflict-exit-code 9 {workers.ROOT}/lock"
    command = f"sudo JAX_COORDINATOR_PORT=8476 {lock} {python} || [ $? -eq 9 ] && echo busy"
    commands = service.on_hosts(settings, size, run, command, "all")
    output = "".join(result.stdout for result in _at_once(run, commands))
    if "busy" in output and "sum" not in output:
        return Finding("all-reduce", "not run, a run is in progress")
    sums = re.findall(r"sum (\d+) of (\d+)", output)
    good = len(sums) == expected and set(sums) == {(str(expected), str(expected))}
    text = f"{len(sums)} of {expected} hosts have the sum of all"
    return Finding("all-reduce", text, "" if good else "prts tpu logs; check the ports above")
