"""Names of a checkpoint's files and the test for completeness. Imports no Orbax: starts fast.

    <workdir>/checkpoints/<step>/params/       parameters: Orbax, OCDBT, zarr3, one chunk per layer
                                 optimizer/    optimizer state; absent after growth
                                 lineage/lineage.json
                                 tokenizer/    tokenizer files of an imported model
                                 matrices/<digest>.npz       matrices of learned growth, if any
                                 commit_success.txt

A local checkpoint is renamed to its final name when it is complete. Object stores have no rename:
there a checkpoint is complete once `commit_success.txt` exists, which is written last.
"""

import dataclasses
import json
import re

from prts_jax.checkpoint.lineage import Lineage
from prts_jax.errors import UserError
from prts_jax.growth.matrices import Matrices
from prts_jax.paths import as_path, is_remote

CHECKPOINTS = "checkpoints"
PARAMS = "params"
OPTIMIZER = "optimizer"
LINEAGE = "lineage"
TOKENIZER = "tokenizer"
LINEAGE_FILE = "lineage.json"
MATRICES = "matrices"
COMMIT_MARKER = "commit_success.txt"
"""Orbax's name for the file that marks a complete checkpoint in an object store."""


def is_complete(path: str) -> bool:
    """Returns whether `path` is a complete checkpoint."""
    directory = as_path(path)
    if is_remote(path) and not (directory / COMMIT_MARKER).exists():
        return False
    return (directory / LINEAGE / LINEAGE_FILE).exists()


def complete_steps(directory: str) -> list[int]:
    """Returns the steps of the complete checkpoints in a `checkpoints` directory, oldest first."""
    try:
        names = [path.name for path in as_path(directory).iterdir()]
    # Object stores have no empty folders; a file has no children.
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [int(name) for name in names if re.fullmatch(r"[0-9]+", name)]
    return sorted(step for step in steps if is_complete(f"{directory}/{step}"))


def resolve(spec: str) -> str:
    """Returns the path of the checkpoint that a user names.

    Args:
      spec: a checkpoint's directory, a workdir (takes its newest checkpoint) or `workdir@step`.

    Returns:
      Absolute path or gs:// address of a complete checkpoint.

    Raises:
      UserError: there is no checkpoint, or none of that step (lists the steps that exist).
    """
    if is_complete(str(as_path(spec))):
        return str(as_path(spec))
    workdir, at, step = spec.rpartition("@")
    exists = as_path(spec).exists()  # a directory may be called "runs@3"
    if exists or not at or not re.fullmatch(r"[0-9]+", step):
        workdir, step = spec, ""
    workdir = str(as_path(workdir))
    if not as_path(workdir).exists():
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
      path: returned by `resolve`.

    Raises:
      UserError: the file is missing, is not JSON or has another format; or matrices are damaged.
    """
    file = as_path(path) / LINEAGE / LINEAGE_FILE
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise UserError(f"{path}: is no checkpoint of prts_jax: it has no {LINEAGE}") from None
    except ValueError as error:
        raise UserError(f"{file}: is damaged ({error}); use another checkpoint") from error
    lineage = Lineage.from_json(values, str(file))
    dense = [record.map.matrices for record in lineage.growth]
    digests = {matrices.digest for matrices in dense if matrices is not None} - {""}
    matrices = {digest: read_matrices(matrices_file(path, digest), digest) for digest in digests}
    return dataclasses.replace(lineage, matrices=matrices)


def matrices_file(path: str, digest: str) -> str:
    """Returns the file of a checkpoint for the matrices with this digest."""
    return f"{path}/{MATRICES}/{digest}.npz"


def read_matrices(file: str, digest: str = "") -> Matrices:
    """Reads the matrices of a learned map.

    Args:
      file: in a checkpoint, or a copy.
      digest: expected digest; "" accepts any.

    Raises:
      UserError: the file is missing or damaged, or has another digest.
    """
    try:
        data = as_path(file).read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({type(error).__name__}); matrices of learned growth belong "
            "there, use another checkpoint or file"
        ) from error
    matrices = Matrices.from_bytes(data, file)
    if digest and matrices.digest != digest:
        raise UserError(
            f"{file}: is not what was saved (digests differ); it is damaged, use another checkpoint"
        )
    return matrices


def write_matrices(path: str, lineage: Lineage) -> None:
    """Writes the matrices of a lineage into an unfinished checkpoint."""
    for digest, matrices in lineage.matrices.items():
        file = as_path(matrices_file(path, digest))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(matrices.to_bytes())


def write_lineage(path: str, lineage: Lineage) -> None:
    """Writes the lineage of an unfinished checkpoint; on local disk this completes it.

    Args:
      path: the checkpoint's directory.
      lineage: with the digests of its parameters.
    """
    write_matrices(path, lineage)
    folder = as_path(path) / LINEAGE
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LINEAGE_FILE).write_text(json.dumps(lineage.to_json()))
