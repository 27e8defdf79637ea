"""The runner of gcloud and git, and the meaning of gcloud's errors."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prts_jax.errors import UserError, escaped, without_credentials

Command = tuple[str, ...]
"""One argument list, as `subprocess.run` takes it."""


@dataclass(frozen=True)
class Result:
    """Exit code and output of a command."""

    code: int
    stdout: str = ""
    stderr: str = ""

    @property
    def reason(self) -> str:
        """The error in one line: gcloud's last line that says ERROR, or the last one."""
        lines = [line for line in self.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["no message"]
        return escaped(without_credentials(errors[-1]))[:400]

    @property
    def absent(self) -> bool:
        """Whether the named resource does not exist, or its service has never been used."""
        return self.code != 0 and _ABSENT.search(self.stderr) is not None

    @property
    def refused(self) -> bool:
        """Whether the same command fails until somebody changes something."""
        return self.code != 0 and _REFUSED.search(self.stderr) is not None


_ABSENT = re.compile(r"(?i)\bnot[ _]found\b|HTTPError 404|does not exist|SERVICE_DISABLED")
_REFUSED = re.compile(
    r"(?i)PERMISSION_DENIED|INVALID_ARGUMENT|SERVICE_DISABLED|unrecognized arguments|"
    r"Invalid choice|Invalid value|Required .*permission|do(es)? not have permission|"
    r"not have any credentials|Reauthentication"
)

Runner = Callable[..., Result]
"""`run`, or a test's stand-in."""


def run(command: Sequence[str], stdin: str | None = None) -> Result:
    """Runs a command and returns its output.

    Raises:
      UserError: the program is not installed.
    """
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, errors="replace", check=False
        )
    except FileNotFoundError as error:
        raise UserError(_missing(command[0])) from error
    return Result(done.returncode, done.stdout, done.stderr)


def run_in_view(command: Sequence[str]) -> int:
    """Runs a command whose output goes to the terminal, and returns its exit code.

    Raises:
      UserError: the program is not installed.
    """
    print(f"+ {text(command)}", file=sys.stderr, flush=True)
    try:
        return subprocess.run(command, check=False).returncode
    except FileNotFoundError as error:
        raise UserError(_missing(command[0])) from error


def text(command: Sequence[str]) -> str:
    """Returns a command as the shell takes it, without credentials."""
    return without_credentials(shlex.join(command))


def _missing(program: str) -> str:
    name = "the Google Cloud CLI" if program == "gcloud" else program
    return f"{program}: not on PATH; install {name}, or use --dry_run"
