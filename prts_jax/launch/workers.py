"""Scripts and gcloud arguments that set up and run workers, over ssh or at boot.

The shell code is in `worker_setup.sh` and `worker_run.sh` beside this file; this module prepends
variables and arguments.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from prts_jax.errors import UserError
from prts_jax.launch.slices import QueuedResource

ROOT = "/opt/prts_jax"
"""Folder of the workers for Python, the source, its packages and logs."""

PAUSE_SECONDS = 30
"""Pause between two attempts at a run."""


@dataclass(frozen=True)
class Source:
    """Source of the repository for workers: a gs://….tar.gz, or a git URL with a revision."""

    url: str
    revision: str = ""

    def __post_init__(self) -> None:
        """Raises UserError for a source that workers cannot fetch."""
        if self.url.startswith("gs://"):
            if not self.url.endswith((".tar.gz", ".tgz")):
                raise UserError(
                    f"--source={self.url}: not a .tar.gz; make one with "
                    "`git archive --format=tar.gz HEAD`"
                )
            if self.revision:
                raise UserError("--revision: an archive has none; leave it out, or give a git URL")
        elif not self.url.startswith(("https://", "ssh://", "git@")):
            raise UserError(
                f"--source={self.url}: workers cannot fetch it; give gs://….tar.gz or a git URL"
            )


def setup_script(source: Source, root: str = ROOT) -> str:
    """Returns the bash text that installs Python, the repository and its packages on a worker."""
    variables = {
        "PRTS_ROOT": root,
        "PRTS_SOURCE": source.url,
        "PRTS_REVISION": source.revision,
    }
    return _with_variables(variables, "worker_setup.sh")


def run_script(
    workdir: str, arguments: Sequence[str], root: str = ROOT, pause_seconds: int = PAUSE_SECONDS
) -> str:
    """Returns the bash text that trains on a worker until the run is finished.

    A run that fails or is stopped (exit code 75) restarts up to 20 times and resumes from its last
    checkpoint; a user error (exit code 2) does not.

    Args:
      workdir: gs:// URL of the run; the workers' logs go to its folder `logs`.
      arguments: further arguments of `prts train`.
      root: see `ROOT`.
      pause_seconds: see `PAUSE_SECONDS`.

    Raises:
      UserError: the workdir is not on GCS, or given twice.
    """
    if not workdir.startswith("gs://"):
        raise UserError(
            f"--workdir={workdir}: workers share no disk; give a folder in a bucket, gs://…"
        )
    if any(argument.split("=")[0] == "--workdir" for argument in arguments):
        raise UserError("--workdir: given twice; leave it out after the --")
    variables = {
        "PRTS_ROOT": root,
        "PRTS_LOGS": f"{workdir.rstrip('/')}/logs",
        "PRTS_PAUSE": str(pause_seconds),
    }
    return _with_variables(variables, "worker_run.sh", [f"--workdir={workdir}", *arguments])


def startup_script(source: Source, workdir: str, arguments: Sequence[str], root: str = ROOT) -> str:
    """Returns a start-up script that sets up and trains at each boot of each worker.

    Replaced and restarted machines thus continue the run.
    """
    setup = setup_script(source, root)
    run = run_script(workdir, arguments, root)
    return f"#!/usr/bin/env bash\nset -euo pipefail\n(\n{setup})\n{run}"


def setup(resource: QueuedResource, source: Source, internal_ips: bool = False) -> list[str]:
    """Returns the gcloud arguments that set up all workers of all slices."""
    return _on_all_workers(resource, _as_root(setup_script(source)), internal_ips)


def run(
    resource: QueuedResource, workdir: str, arguments: Sequence[str], internal_ips: bool = False
) -> list[str]:
    """Returns the gcloud arguments that start training on all workers of all slices.

    The run is detached and the command returns at once: ssh shows output only when a command ends.

    Raises:
      UserError: see `run_script`.
    """
    script = run_script(workdir, arguments, ROOT)
    lock = f"{ROOT}/lock"
    launcher = (
        f"[ -x {ROOT}/venv/bin/prts ] || "
        '{ echo "$(hostname): not set up; run tpu_scripts/setup.sh" >&2; exit 1; }\n'
        f"flock --nonblock {lock} true || "
        '{ echo "$(hostname): a run or set-up is in progress here" >&2; exit 1; }\n'
        f"setsid --fork bash -c {shlex.quote(script)} </dev/null "
        f'>>{ROOT}/"$(hostname)".log 2>&1\n'
        'echo "$(hostname): started"\n'
    )
    return _on_all_workers(resource, _as_root(launcher), internal_ips)


def _with_variables(
    variables: Mapping[str, str], script: str, arguments: Sequence[str] = ()
) -> str:
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    body = resources.files("prts_jax.launch").joinpath(script).read_text(encoding="utf-8")
    return f"{assignments}set -- {shlex.join(arguments)}\n{body}"


def _as_root(script: str) -> str:
    # As start-up scripts, so that both use the same files and locks.
    return f"sudo bash -c {shlex.quote(script)}"


def _on_all_workers(resource: QueuedResource, command: str, internal_ips: bool) -> list[str]:
    tunnel = ["--tunnel-through-iap"] if internal_ips else []
    everywhere = ["--node=all", "--worker=all", *tunnel]
    return [*resource.arguments("ssh"), *everywhere, f"--command={command}"]
