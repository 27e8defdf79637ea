"""Names of a checkpoint's files, and when it is complete. Imports no Orbax, so that it is cheap.

    <workdir>/checkpoints/<step>/params/       parameters: Orbax, OCDBT, zarr3, a chunk a layer
                                 optimizer/    optimizer state; a grown checkpoint has none
                                 lineage/lineage.json
                                 tokenizer/    of an imported model: the files beside its weights
                                 matrices/<digest>.npz       of learned growth, if there was any
                                 commit_success.txt

A local checkpoint gets its name by a rename when all of it is there. Object stores have no rename:
there `commit_success.txt` is written last, and nothing counts before it.
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
"""Orbax's name for the file that ends a checkpoint where there is no rename."""


def is_complete(path: str) -> bool:
    """Returns whether `path` is a whole checkpoint."""
    directory = as_path(path)
    if is_remote(path) and not (directory / COMMIT_MARKER).exists():
        return False
    return (directory / LINEAGE / LINEAGE_FILE).exists()


def complete_steps(directory: str) -> list[int]:
    """Returns the steps of the whole checkpoints in a `checkpoints` directory, oldest first."""
    try:
        names = [path.name for path in as_path(directory).iterdir()]
    # An empty folder of an object store does not exist; a file has nothing below it.
    except (FileNotFoundError, NotADirectoryError):
        return []
    steps = [int(name) for name in names if re.fullmatch(r"[0-9]+", name)]
    return sorted(step for step in steps if is_complete(f"{directory}/{step}"))


def resolve(spec: str) -> str:
    """Finds the checkpoint that a user names.

    Args:
      spec: the directory of a checkpoint, or a workdir (its newest), or `workdir@step`.

    Returns:
      Absolute path or gs:// address of a complete checkpoint.

    Raises:
      UserError: there is none, or not that step (names those that exist).
    """
    if is_complete(str(as_path(spec))):
        return str(as_path(spec))
    workdir, at, step = spec.rpartition("@")
    named_so = as_path(spec).exists()  # a directory may be called "runs@3"
    if named_so or not at or not re.fullmatch(r"[0-9]+", step):
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
      path: what `resolve` returned.

    Raises:
      UserError: no such file, not JSON, of another format, or matrices that are not what was saved.
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
    """Returns where a checkpoint keeps the matrices with this digest."""
    return f"{path}/{MATRICES}/{digest}.npz"


def read_matrices(file: str, digest: str = "") -> Matrices:
    """Reads the matrices of a learned map.

    Args:
      file: of a checkpoint, or wherever it was copied.
      digest: what they must be; "" takes any.

    Raises:
      UserError: the file is missing, no such file, or not what was saved.
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
    """Writes the matrices of a lineage into a checkpoint in the making."""
    for digest, matrices in lineage.matrices.items():
        file = as_path(matrices_file(path, digest))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(matrices.to_bytes())


def write_lineage(path: str, lineage: Lineage) -> None:
    """Writes the lineage of a checkpoint in the making; locally it comes last, and completes it.

    Args:
      path: the checkpoint's directory.
      lineage: with the digests of its parameters.
    """
    write_matrices(path, lineage)
    folder = as_path(path) / LINEAGE
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LINEAGE_FILE).write_text(json.dumps(lineage.to_json()))
