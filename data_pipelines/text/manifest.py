"""A list of the input's files that makes an incomplete or altered download an error."""

import hashlib
import os
from collections.abc import Mapping, Sequence

from data_pipelines.text.inputs import open_input, unreadable
from prts_jax.errors import UserError, first_line
from prts_jax.paths import PathLike, as_path

HASHED_BYTES = 1 << 20


def expected_digests(expected: str, files: Sequence[str], folder: PathLike) -> Mapping[str, str]:
    """Checks the input's files; returns the SHA-256 that each must have, none for a number.

    `expected` is their number, or a list as `sha256sum` writes it: a line for each file, its
    SHA-256 in hexadecimal and its path below `folder`.

    Raises:
      UserError: another number of files; a listed file that is missing, or a file that is not
        listed; or a list that cannot be read.
    """
    if expected.isdecimal():
        if len(files) != int(expected):
            raise UserError(
                f"incomplete input: {folder} has {len(files):,} files to read, not the {expected} "
                "of --expect; fetch the missing ones, or correct the number"
            )
        return {}
    listed = _read_list(expected)
    names = {os.path.relpath(file, folder): file for file in files}
    missing = [name for name in listed if name not in names]
    if missing := [name for name in missing if not (as_path(folder) / name).exists()]:
        raise UserError(
            f"incomplete input: {len(missing):,} of the {len(listed):,} files of {expected} are "
            f"missing from {folder}, the first is {missing[0]}; fetch them"
        )
    if unlisted := [name for name in names if name not in listed]:
        raise UserError(
            f"{len(unlisted):,} files of {folder} are not in {expected}, the first is "
            f"{unlisted[0]}; list their paths below that folder, or leave the files out"
        )
    return {file: listed[name] for name, file in names.items()}


def _read_list(path: str) -> dict[str, str]:
    """Returns path → SHA-256 of a list as `sha256sum` writes it."""
    try:
        lines = as_path(path).read_bytes().decode().splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"--expect={path}: {first_line(error)}; give a number of files, or a list of sha256sum"
        ) from error
    listed = {}
    for number, line in enumerate(lines, 1):
        digest, _, name = line.partition(" ")
        if not line.strip():
            continue
        if len(digest) != 64 or not {*digest.lower()} <= {*"0123456789abcdef"} or not name[1:]:
            raise UserError(
                f"--expect={path}, line {number}: give a SHA-256, two spaces and a file's path"
            )
        listed[os.path.normpath(name[1:].lstrip())] = digest.lower()
    if not listed:
        raise UserError(f"--expect={path}: the list is empty")
    return listed


def check_digest(path: str, sha256: str) -> None:
    """Compares a file with its SHA-256.

    Raises:
      UserError: the file differs, or cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open_input(path) as file:
            while content := file.read(HASHED_BYTES):
                digest.update(content)
    except OSError as error:
        raise unreadable(path, error) from error
    if digest.hexdigest() != sha256:
        raise UserError(
            f"altered input: {path} has the SHA-256 {digest.hexdigest()}, not the {sha256} of "
            "--expect; fetch it again"
        )
