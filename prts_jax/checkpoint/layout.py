"""Where a checkpoint keeps what, and when it is complete. No Orbax here: reading a name is cheap.

    <workdir>/checkpoints/<step>/params/       parameters: Orbax, OCDBT, zarr3, a chunk a layer
                                 optimizer/    optimizer state; a grown checkpoint has none
                                 lineage/lineage.json
                                 commit_success.txt

A local checkpoint gets its name by a rename when all of it is there. Object stores have no rename:
there `commit_success.txt` is written last, and nothing counts before it.
"""

import json
import re

from etils import epath

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.errors import UserError

CHECKPOINTS = "checkpoints"
PARAMS = "params"
OPTIMIZER = "optimizer"
LINEAGE = "lineage"
LINEAGE_FILE = "lineage.json"
COMMIT_MARKER = "commit_success.txt"
"""Orbax's name for the file that ends a checkpoint where there is no rename."""


def is_remote(path: str) -> bool:
    """Returns whether a path lies in an object store (no rename, no locks)."""
    return path.startswith("gs://")


def absolute(path: str) -> str:
    """Returns a path as the checkpoint libraries want it: absolute, or gs://."""
    return path.rstrip("/") if is_remote(path) else str(epath.Path(path).expanduser().resolve())


def is_complete(path: str) -> bool:
    """Returns whether `path` is a whole checkpoint."""
    directory = epath.Path(path)
    if is_remote(path) and not (directory / COMMIT_MARKER).exists():
        return False
    return (directory / LINEAGE / LINEAGE_FILE).exists()


def complete_steps(directory: str) -> list[int]:
    """Returns the steps of the whole checkpoints in a `checkpoints` directory, oldest first."""
    parent = epath.Path(directory)
    if not parent.exists():
        return []
    steps = [int(path.name) for path in parent.iterdir() if re.fullmatch(r"\d+", path.name)]
    return sorted(step for step in steps if is_complete(str(parent / str(step))))


def resolve(spec: str) -> str:
    """Finds the checkpoint that a user names.

    Args:
      spec: the directory of a checkpoint, or a workdir (its newest), or `workdir@step`.

    Returns:
      Absolute path or gs:// address of a complete checkpoint.

    Raises:
      UserError: there is none, or not that step (names those that exist).
    """
    if is_complete(absolute(spec)):
        return absolute(spec)
    workdir, at, step = spec.rpartition("@")
    if not at or not re.fullmatch(r"\d+", step):
        workdir, step = spec, ""
    workdir = absolute(workdir)
    if not epath.Path(workdir).exists():
        raise UserError(f"{spec}: does not exist; name a checkpoint, or a run's workdir[@step]")
    parent = f"{workdir}/{CHECKPOINTS}"
    steps = complete_steps(parent)
    if not steps:
        raise UserError(
            f"{spec}: no complete checkpoint there; name a checkpoint's directory, or the workdir "
            "of a run that has saved one"
        )
    if step and int(step) not in steps:
        known = ", ".join(map(str, steps))
        raise UserError(f"{spec}: no complete checkpoint of step {int(step)}; there are: {known}")
    return f"{parent}/{int(step) if step else steps[-1]}"


def read_lineage(path: str) -> Lineage:
    """Reads the lineage of a checkpoint.

    Args:
      path: what `resolve` returned.

    Raises:
      UserError: no such file, not JSON, or of another format.
    """
    file = epath.Path(path) / LINEAGE / LINEAGE_FILE
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: is no checkpoint of prts_jax: it has no {LINEAGE}") from None
    except ValueError as error:
        raise UserError(f"{file}: is damaged ({error}); use another checkpoint") from error
    return Lineage.from_json(values, str(file))
