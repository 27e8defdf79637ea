"""Metrics of a run on Weights & Biases, for users who have installed the package `wandb`."""

import importlib.util
import json
import secrets
import sys
import tempfile
from collections.abc import Mapping
from typing import Any

from prts_jax.config import RunConfig, to_dict
from prts_jax.errors import UserError, first_line, storage_errors
from prts_jax.paths import as_path, is_remote, write_atomically

FILE = "wandb.json"
"""Project and id of the run, in its workdir: every start continues the same run."""


def check_wandb(config: RunConfig) -> None:
    """Raises UserError if `logging.wandb` names a project and the package is not installed."""
    if config.logging.wandb and importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"config.logging.wandb: is {config.logging.wandb!r} and the package wandb is not "
            "installed; pip install wandb, or set it to ''"
        )


class WandbRun:
    """The run on Weights & Biases that mirrors a workdir."""

    def __init__(self, workdir: str, config: RunConfig) -> None:
        """Begins the run of a workdir, or continues it after a restart or a stage.

        Args:
          workdir: of the run; its last part is the name.
          config: resolved config of the stage.

        Raises:
          UserError: wandb refuses, for example without a login.
          StorageError: the id cannot be stored.
        """
        import wandb

        project, root = config.logging.wandb, as_path(workdir)
        identity = _identity(workdir, project)
        try:
            self._run = wandb.init(
                project=project,
                id=identity,
                name=root.name,
                resume="allow",
                config=to_dict(config),
                allow_val_change=True,
                dir=tempfile.gettempdir() if is_remote(workdir) else str(root),
            )
        except Exception as error:
            raise UserError(
                f"config.logging.wandb: wandb refuses project {project!r} ({first_line(error)}); "
                "run `wandb login`, set WANDB_MODE=offline, or set it to ''"
            ) from error

    def write(self, line: Mapping[str, Any]) -> None:
        """Sends the numbers of a line of metrics; wandb drops steps that it has already."""
        numbers = {name: value for name, value in line.items() if isinstance(value, int | float)}
        try:
            self._run.log(numbers, step=line["step"])
        except Exception as error:  # a service for looking at runs does not end them
            print(f"wandb: step {line['step']} is lost: {first_line(error)}", file=sys.stderr)

    def close(self) -> None:
        """Ends this start of the run; waits until wandb has sent what it has."""
        self._run.finish()


def _identity(workdir: str, project: str) -> str:
    """Returns the id in the workdir; a new one, which it stores, in a new run or project."""
    path = as_path(workdir) / FILE
    with storage_errors(f"{path}: cannot be read"):
        text = path.read_text() if path.exists() else "{}"
    try:
        known = json.loads(text)
        if known["project"] == project:
            return str(known["id"])
    except (ValueError, TypeError, KeyError):
        pass  # no run of this project yet
    identity = secrets.token_hex(4)
    write_atomically(path, json.dumps({"project": project, "id": identity}) + "\n")
    return identity
