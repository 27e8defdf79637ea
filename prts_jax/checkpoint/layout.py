"""Names of a checkpoint's files and the test for completeness. Imports no Orbax: starts fast.

    <workdir>/checkpoints/<step>/params/       parameters: Orbax, OCDBT, zarr3, one chunk per layer
                                 optimizer/    optimizer state; absent after growth
                                 ema/          moving average of the parameters, laid out as they
                                               are; absent unless the run has one
                                 lineage/lineage.json
                                 tokenizer/    tokenizer files of an imported model
                                 matrices/<digest>.npz       matrices of learned growth, if any
                                 commit_success.txt

A local checkpoint is renamed to its final name when it is complete. Object stores have no rename:
there a checkpoint is complete once `commit_success.txt` exists, which is written last.

Beside the checkpoints of a run may lie:

    <step>.orbax-checkpoint-tmp/       a save of Orbax in the making
    <step>.saving                      gs:// only: <step>/ is being written, or its save failed
    <step>.removing                    a checkpoint being removed; on gs:// a mark beside <step>/
    <step>.damaged-<item>/             a damaged checkpoint that a resume moved aside

Everything else belongs to somebody else. A path that does not exist and one that cannot be read are
two things: the second raises an error, so that nothing is started or removed because of it.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prts_jax.checkpoint.damage import GONE, DamagedError, reading
from prts_jax.checkpoint.lineage import Lineage
from prts_jax.checkpoint.matrices_files import matrices_file, read_matrices, write_matrices
from prts_jax.errors import UserError, first_line, is_storage_error, os_code, storage_error
from prts_jax.growth.matrices import COST, UNKNOWN, Matrices
from prts_jax.paths import as_path, is_remote

CHECKPOINTS = "checkpoints"
PARAMS = "params"
OPTIMIZER = "optimizer"
EMA = "ema"
WEIGHTS = (PARAMS, EMA)
"""Items that hold a value for each parameter of the model."""

LINEAGE = "lineage"
TOKENIZER = "tokenizer"
LINEAGE_FILE = "lineage.json"
COMMIT_MARKER = "commit_success.txt"
"""Orbax's name for the file that marks a complete checkpoint in an object store."""

SAVING = ".saving"
REMOVING = ".removing"
_STEP = re.compile(r"0|[1-9][0-9]*")
_UNFINISHED = re.compile(r"[0-9]+\.(orbax-checkpoint-tmp(-[0-9]+)?|saving|removing)")
_ASIDE = re.compile(r"[0-9]+\.damaged-[a-z]+(-[0-9]+)?")


@dataclass(frozen=True)
class Contents:
    """The entries of a run's `checkpoints` directory.

    Attributes:
      complete: steps of the complete checkpoints, oldest first.
      broken: step → the missing file, of the numbered entries that are no complete checkpoint.
      unfinished: names of the rests of saves and removals, which may be removed.
      aside: names of the damaged checkpoints that were moved aside.
      foreign: names of all other entries.
    """

    complete: tuple[int, ...]
    broken: Mapping[int, str]
    unfinished: tuple[str, ...]
    aside: tuple[str, ...]
    foreign: tuple[str, ...]

    @property
    def steps(self) -> list[int]:
        """The steps of all numbered entries, complete or broken, oldest first."""
        return sorted((*self.complete, *self.broken))


def is_complete(path: str) -> bool:
    """Returns whether `path` is a complete checkpoint.

    Raises:
      UserError, StorageError: it cannot be read.
    """
    return not _missing(str(as_path(path)))


def contents(directory: str) -> Contents:
    """Lists a `checkpoints` directory; one that does not exist is empty.

    Raises:
      UserError, StorageError: the directory or a checkpoint in it cannot be read.
    """
    names = sorted(_names(directory))
    complete, broken, unfinished = [], {}, []
    for name in filter(_STEP.fullmatch, names):
        missing = _missing(f"{directory}/{name}")
        # On gs:// an interrupted save or removal lies under the checkpoint's own name.
        interrupted = f"{name}{REMOVING}" in names or (missing and f"{name}{SAVING}" in names)
        if is_remote(directory) and interrupted:
            unfinished.append(name)
        elif missing:
            broken[int(name)] = missing
        else:
            complete.append(int(name))
    unfinished += filter(_UNFINISHED.fullmatch, names)
    aside = tuple(filter(_ASIDE.fullmatch, names))
    ours = {*unfinished, *aside, *map(str, complete), *map(str, broken)}
    foreign = tuple(name for name in names if name not in ours)
    return Contents(tuple(sorted(complete)), broken, tuple(unfinished), aside, foreign)


def complete_steps(directory: str) -> list[int]:
    """Returns the steps of the complete checkpoints in a `checkpoints` directory, oldest first."""
    return list(contents(directory).complete)


def newest_step(directory: str) -> int | None:
    """Returns the newest step in a `checkpoints` directory; None if no save has finished there.

    Raises:
      DamagedError: the newest checkpoint is not complete.
      UserError: only checkpoints that were moved aside are left; or nothing can be read.
    """
    there = contents(directory)
    if not there.steps:
        if there.aside:
            raise UserError(
                f"{directory}: holds damaged checkpoints alone ({', '.join(there.aside)}); put the "
                "files of one back from a copy and rename it to its step, or name a new directory"
            )
        return None
    newest = there.steps[-1]
    if newest in there.broken:
        raise DamagedError(
            f"{directory}/{newest}",
            LINEAGE,
            f"{directory}/{newest}: has no {there.broken[newest]}; files are missing or damaged, "
            "use another checkpoint",
        )
    return newest


def _missing(path: str) -> str:
    """Returns the first file that a complete checkpoint has and `path` lacks; "" if none."""
    entries = _names(path)
    if is_remote(path) and COMMIT_MARKER not in entries:
        return COMMIT_MARKER
    if LINEAGE not in entries or LINEAGE_FILE not in _names(f"{path}/{LINEAGE}"):
        return f"{LINEAGE}/{LINEAGE_FILE}"
    return ""


def _names(directory: str) -> list[str]:
    """Returns the names in a directory; none if it does not exist or is a file."""
    try:
        return [path.name for path in as_path(directory).iterdir()]
    except Exception as error:
        if not is_storage_error(error):
            raise
        if os_code(error) in GONE:  # object stores have no empty folders
            return []
        raise storage_error(f"{directory}: cannot be read", error) from error


def resolve(spec: str) -> str:
    """Returns the path of the checkpoint that a user names.

    Args:
      spec: a checkpoint's directory, a workdir (takes its newest checkpoint) or `workdir@step`.

    Returns:
      Absolute path or gs:// address of a complete checkpoint.

    Raises:
      UserError: there is no checkpoint, or none of that step (lists the steps that exist); or the
        newest of a workdir is damaged.
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
    newest = None if step else newest_step(parent)
    if newest is not None:
        return f"{parent}/{newest}"
    steps = complete_steps(parent)
    if not steps:
        raise UserError(
            f"{spec}: no complete checkpoint there; name a checkpoint's directory, or the workdir "
            "of a run that has saved one"
        )
    if int(step) not in steps:
        known = ", ".join(map(str, steps))
        raise UserError(f"{spec}: no complete checkpoint of step {int(step)}; there are: {known}")
    return f"{parent}/{int(step)}"


def read_lineage(path: str) -> Lineage:
    """Reads the lineage of a checkpoint.

    Args:
      path: returned by `resolve`.

    Raises:
      DamagedError: the file is missing, is no lineage, or is not what was written; it is of another
        step than the directory; or matrices are damaged.
      UserError, StorageError: files cannot be read.
    """
    file = as_path(path) / LINEAGE / LINEAGE_FILE
    with reading(path, LINEAGE, str(file)):
        try:
            data = file.read_bytes()
        except FileNotFoundError:
            message = f"{path}: is no checkpoint of prts_jax: it has no {LINEAGE}"
            raise DamagedError(path, LINEAGE, message) from None
    try:
        values = _unseal(json.loads(data.decode()))
    except (ValueError, RecursionError) as error:
        message = f"{file}: is damaged ({first_line(error)}); use another checkpoint"
        raise DamagedError(path, LINEAGE, message) from error
    try:
        lineage = Lineage.from_json(values, str(file))
    except UserError as error:
        raise DamagedError(path, LINEAGE, str(error)) from error
    _check_step(path, lineage)
    matrices: dict[str, Matrices] = {}
    for record in lineage.growth:
        digest = record.map.matrices.digest if record.map.matrices is not None else ""
        if digest and digest not in matrices:
            read = read_matrices(matrices_file(path, digest), digest)
            if record.learning and read.learning.get(COST) == UNKNOWN:  # of an older version
                read = dataclasses.replace(read, learning={"run": path, **record.learning})
            matrices[digest] = read
    return dataclasses.replace(lineage, matrices=matrices)


def check_weights(path: str, lineage: Lineage, item: str) -> None:
    """Checks that a checkpoint holds an item of `WEIGHTS`.

    Raises:
      UserError: there is no such item, or the run kept no moving average.
    """
    if item not in WEIGHTS:
        raise UserError(f"--weights={item}: is none of {', '.join(WEIGHTS)}; name one of them")
    if item == EMA and not lineage.ema_digests:
        raise UserError(
            f"{path}: holds no moving average of the weights (config.optimizer.ema was 0); leave "
            f"--weights={EMA} out"
        )


def sealed(lineage: Lineage) -> bytes:
    """Returns the JSON of a lineage with a checksum of its values.

    Two keys carry the checksum, so that damage to one of them is not taken for an older file, which
    has neither.
    """
    values = lineage.to_json()
    return json.dumps({**values, _KIND: "sha256", _CHECKSUM: _checksum(values)}).encode()


_KIND, _CHECKSUM = "checksum_kind", "checksum"


def _unseal(values: Any) -> Any:
    """Returns the values below a checksum, or those of an older file without one.

    Raises:
      ValueError: the checksum differs, or is there in part.
    """
    if not isinstance(values, dict) or not {_KIND, _CHECKSUM} & values.keys():
        return values
    inner = {key: value for key, value in values.items() if key not in (_KIND, _CHECKSUM)}
    if (values.get(_KIND), values.get(_CHECKSUM)) != ("sha256", _checksum(inner)):
        raise ValueError("it is not what was saved: its checksum differs")
    return inner


def _checksum(values: Mapping[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _check_step(path: str, lineage: Lineage) -> None:
    """Compares the step with the directory's name, if that is one of a run's."""
    directory = as_path(path)
    numbered = directory.parent.name == CHECKPOINTS and _STEP.fullmatch(directory.name)
    if numbered and int(directory.name) != lineage.step:
        raise DamagedError(
            path,
            LINEAGE,
            f"{path}: holds a checkpoint of step {lineage.step}; it is damaged or was renamed, "
            f"rename it to {lineage.step} or use another checkpoint",
        )


def write_lineage(path: str, lineage: Lineage) -> None:
    """Writes the lineage of an unfinished checkpoint; on local disk this completes it.

    Args:
      path: the checkpoint's directory.
      lineage: with the digests of its parameters.
    """
    write_matrices(path, lineage)
    folder = as_path(path) / LINEAGE
    folder.mkdir(parents=True, exist_ok=True)
    (folder / LINEAGE_FILE).write_bytes(sealed(lineage))
