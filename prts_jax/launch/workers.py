"""Scripts that set up and run hosts, over ssh or at boot.

The shell code is in `worker_setup.sh` and `worker_run.sh` beside this file; this module prepends
variables and arguments.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources

from prts_jax.errors import UserError

ROOT = "/opt/prts_jax"
"""Folder of the hosts for Python, the source, its packages and logs."""

PAUSE_SECONDS = 30
"""Pause between two tries of a run on a host."""

TRIES = 20
"""Tries of a run on a host."""

SETUP_TRIES = 5
"""Tries of the set-up at boot, where the network or the package registry may not answer yet."""


@dataclass(frozen=True)
class Source:
    """Source of the repository for hosts: a gs://….tar.gz, or a git URL with a revision.

    `extras` are those of the package to install, comma-separated.
    """

    url: str
    revision: str = ""
    extras: str = "tpu"

    def __post_init__(self) -> None:
        """Raises UserError for a source that hosts cannot fetch."""
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


@dataclass(frozen=True)
class Job:
    """Training on all hosts, with the same command on each.

    Attributes:
      workdir: gs:// URL of the run; logs go to its folder `logs`, results to `launch`.
      attempt: number of the launch; 0: not counted, and no result is written.
      nonce: differs between two launches of the same number.
      hosts: hosts of all slices; 0: as many as the metadata says.
      after: bash text that process 0 runs after the training; "" for none.
      on_success: shell command that process 0 runs last of all after a success; "" for none.

    Raises:
      UserError: the workdir is not on GCS, or given twice.
    """

    workdir: str
    arguments: tuple[str, ...] = ()
    attempt: int = 0
    nonce: str = ""
    hosts: int = 0
    slices: int = 1
    after: str = ""
    on_success: str = ""

    def __post_init__(self) -> None:
        """Checks the workdir."""
        if not self.workdir.startswith("gs://"):
            raise UserError(
                f"--workdir={self.workdir}: workers share no disk; give a folder in a bucket, gs://…"
            )
        if any(argument.split("=")[0] == "--workdir" for argument in self.arguments):
            raise UserError("--workdir: given twice; leave it out after the --")

    @property
    def folder(self) -> str:
        """Folder in the bucket for results and the state of `babysit`."""
        return f"{self.workdir.rstrip('/')}/launch"

    @property
    def result(self) -> str:
        """File in the bucket that the attempt's exit code is written to."""
        return f"{self.folder}/result-{self.attempt}-{self.nonce}"


def setup_script(source: Source, root: str = ROOT) -> str:
    """Returns the bash text that installs Python, the repository and its packages on a host."""
    variables = {
        "PRTS_ROOT": root,
        "PRTS_SOURCE": source.url,
        "PRTS_REVISION": source.revision,
        "PRTS_EXTRAS": source.extras,
    }
    return _with_variables(variables, "worker_setup.sh")


def run_script(
    job: Job, root: str = ROOT, pause_seconds: int = PAUSE_SECONDS, tries: int = TRIES
) -> str:
    """Returns the bash text that trains on a host until the run is finished.

    A run that fails or is stopped (exit code 75) is tried again, `tries` times in all, and resumes
    from its last checkpoint; after a user error (exit code 2) or a divergence it is not.
    """
    variables = {
        "PRTS_ROOT": root,
        "PRTS_WORKDIR": job.workdir.rstrip("/"),
        "PRTS_TRIES": str(tries),
        "PRTS_PAUSE": str(pause_seconds),
        "PRTS_ATTEMPT": str(job.attempt or ""),
        "PRTS_NONCE": job.nonce,
        "PRTS_HOSTS": str(job.hosts or ""),
        "PRTS_SLICES": str(job.slices),
        "PRTS_AFTER": job.after,
        "PRTS_ON_SUCCESS": job.on_success,
    }
    arguments = [f"--workdir={job.workdir}", *job.arguments]
    return _with_variables(variables, "worker_run.sh", arguments)


def startup_script(source: Source, job: Job, root: str = ROOT) -> str:
    """Returns a start-up script that sets up and trains at each boot of each host.

    Replaced and restarted machines thus continue the run.
    """
    log = f'{root}/"$(hostname)"-setup.log'
    logs = shlex.quote(f"{job.workdir.rstrip('/')}/logs/")
    tell = f"echo 1 | gcloud storage cp --quiet - {shlex.quote(job.result)} || true; "
    return (
        "#!/usr/bin/env bash\nset -euo pipefail\n"
        f"# Code: {source.url} {source.revision}\nmkdir -p {root}\n"
        f"for try in $(seq {SETUP_TRIES}); do\n"
        f"  if bash -c {shlex.quote(setup_script(source, root))} >>{log} 2>&1; then break; fi\n"
        f"  gcloud storage cp --quiet {log} {logs} || true\n"
        f'  if [ "$try" -eq {SETUP_TRIES} ]; then {tell if job.attempt else ""}exit 1; fi\n'
        f"  sleep {PAUSE_SECONDS}\n"
        f"done\n{run_script(job, root)}"
    )


def setup_command(source: Source) -> str:
    """Returns the remote shell command that sets a host up."""
    return _as_root(setup_script(source))


def run_command(job: Job) -> str:
    """Returns the remote shell command that starts training, detached.

    The command returns at once, because ssh shows output only when a command ends.
    """
    launcher = (
        f"[ -x {ROOT}/venv/bin/prts ] || "
        '{ echo "$(hostname): not set up; run tpu_scripts/setup.sh" >&2; exit 1; }\n'
        f"flock --nonblock {ROOT}/lock true || "
        '{ echo "$(hostname): a run or set-up is in progress here" >&2; exit 1; }\n'
        f"setsid --fork bash -c {shlex.quote(run_script(job, ROOT))} </dev/null "
        f'>>{ROOT}/"$(hostname)".log 2>&1\n'
        'echo "$(hostname): started"\n'
    )
    return _as_root(launcher)


def stop_command() -> str:
    """Returns the remote shell command that stops the run: it saves and ends."""
    return _as_root(
        f"if flock --nonblock {ROOT}/lock true 2>/dev/null; then\n"
        '  echo "$(hostname): nothing runs here"\n'
        f'else\n  kill -TERM "$(cat {ROOT}/pid)"\n  echo "$(hostname): stopping"\nfi\n'
    )


def _with_variables(
    variables: Mapping[str, str], script: str, arguments: Sequence[str] = ()
) -> str:
    assignments = "".join(f"{name}={shlex.quote(value)}\n" for name, value in variables.items())
    body = resources.files("prts_jax.launch").joinpath(script).read_text(encoding="utf-8")
    return f"{assignments}set -- {shlex.join(arguments)}\n{body}"


def _as_root(script: str) -> str:
    # As start-up scripts, so that both use the same files and locks.
    return f"sudo bash -c {shlex.quote(script)}"
