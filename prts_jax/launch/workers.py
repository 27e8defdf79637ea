"""What the workers of a slice are told: set up, run; over ssh or in a start-up script.

The shell that workers execute lies beside this file (`worker_setup.sh`, `worker_run.sh`); here its
variables and arguments are put in front of it.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from prts_jax.errors import UserError
from prts_jax.launch.slices import Place

ROOT = "/opt/prts_jax"
"""Where workers keep Python, the source, its packages and their logs."""

PAUSE_SECONDS = 30
"""Between two attempts at a run."""


@dataclass(frozen=True)
class Source:
    """Where workers take the repository from: a gs://….tar.gz, or a git URL with a revision."""

    url: str
    revision: str = ""

    def __post_init__(self) -> None:
        """Refuses what workers could not fetch."""
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

    A run that fails or is stopped (exit code 75) is started again up to 20 times and resumes from
    its last checkpoint; a mistake of the user's (exit code 2) is not.

    Args:
      workdir: gs:// URL of the run; the workers' logs go to its folder `logs`.
      arguments: further arguments of `prts train`.
      root: see `ROOT`.
      pause_seconds: see `PAUSE_SECONDS`.

    Raises:
      UserError: a workdir that the workers do not share, or one given twice.
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
    """Returns a start-up script that sets up and trains, at every boot of every worker.

    Replaced and restarted machines so continue the run by themselves.
    """
    setup = setup_script(source, root)
    run = run_script(workdir, arguments, root)
    return f"#!/usr/bin/env bash\nset -euo pipefail\n(\n{setup})\n{run}"


def setup(place: Place, source: Source, internal_ips: bool = False) -> list[str]:
    """Returns the gcloud arguments that set up all workers of all slices."""
    return _on_all_workers(place, _as_root(setup_script(source)), internal_ips)


def run(
    place: Place, workdir: str, arguments: Sequence[str], internal_ips: bool = False
) -> list[str]:
    """Returns the gcloud arguments that start training on all workers of all slices.

    The command returns at once and the run goes on: ssh shows its output only when a command ends.

    Raises:
      UserError: see `run_script`.
    """
    script = run_script(workdir, arguments, ROOT)
    lock = f"{ROOT}/lock"
    launcher = (
        f"[ -x {ROOT}/venv/bin/prts ] || "
        '{ echo "$(hostname): not set up; run tpu_scripts/setup.sh" >&2; exit 1; }\n'
        f"flock --nonblock {lock} true || "
        '{ echo "$(hostname): a run or a set-up is going on here" >&2; exit 1; }\n'
        f"setsid --fork bash -c {shlex.quote(script)} </dev/null "
        f'>>{ROOT}/"$(hostname)".log 2>&1\n'
        'echo "$(hostname): started"\n'
    )
    return _on_all_workers(place, _as_root(launcher), internal_ips)


def _with_variables(
    variables: Mapping[str, str], script: str, arguments: Sequence[str] = ()
) -> str:
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    body = resources.files("prts_jax.launch").joinpath(script).read_text(encoding="utf-8")
    return f"{assignments}set -- {shlex.join(arguments)}\n{body}"


def _as_root(script: str) -> str:
    # Start-up scripts run as root; what ssh starts must find the same files and locks.
    return f"sudo bash -c {shlex.quote(script)}"


def _on_all_workers(place: Place, command: str, internal_ips: bool) -> list[str]:
    tunnel = ["--tunnel-through-iap"] if internal_ips else []
    everywhere = ["--node=all", "--worker=all", *tunnel]
    return [*place.arguments("ssh"), *everywhere, f"--command={command}"]
