"""Files on local disk and on gs://, through one library and without TensorFlow."""

import contextlib
import errno
import os
import stat

# etils would import TensorFlow for gs:// wherever it is installed; gcsfs does the same job.
os.environ["EPATH_USE_TF"] = "false"

from etils import epath
from fsspec.config import conf

from prts_jax.errors import UserError, storage_errors

# gcsfs remembers listings and does not see what tensorstore or another host has written since.
conf.setdefault("gcs", {})["use_listings_cache"] = False

PathLike = str | os.PathLike[str]
"""A path on local disk or on gs://."""


def as_path(path: PathLike) -> epath.Path:
    """Returns an absolute `epath.Path` (Orbax refuses relative ones); "~" is expanded.

    Raises:
      UserError: a path with another scheme, such as s3://; a gs:// path without a bucket, bytes
        that are not UTF-8, which tensorstore refuses.
    """
    scheme, separator, rest = os.fspath(path).partition("://")
    if separator and scheme != "gs" and "/" not in scheme:
        instead = {"gcs": f"gs://{rest}", "file": f"/{rest.lstrip('/')}"}.get(scheme.lower())
        raise UserError(
            f"{path}: paths of {scheme}:// are not supported; "
            f"give {instead or 'a local path or gs://bucket/…'}"
        )
    if any("\ud800" <= character <= "\udfff" for character in os.fspath(path)):
        raise UserError(f"{path}: holds bytes that are not UTF-8; rename it")
    if separator and scheme == "gs" and rest[:1] in ("", "/"):
        raise UserError(f"{path}: names no bucket; give gs://bucket/…")
    result = epath.Path(path)
    return result if is_remote(path) else result.expanduser().absolute()


def is_remote(path: PathLike) -> bool:
    """Whether the path lies on object storage: no rename, no locks, no appending."""
    return os.fspath(path).startswith("gs://")


def exists(path: PathLike) -> bool:
    """Returns whether a path exists. Python's own `exists` takes unreadable paths for missing.

    Raises:
      OSError: the path cannot be looked up.
    """
    if is_remote(path):
        return bool(as_path(path).exists())
    try:
        os.stat(as_path(path))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def make_folders(path: PathLike) -> None:
    """Creates a folder and those above it; on object storage there are none.

    Unlike `mkdir(parents=True)` it needs no call for each part of the path.

    Raises:
      OSError: a folder cannot be created.
    """
    for folder in _missing_folders(as_path(path)):
        folder.mkdir(exist_ok=True)


def _missing_folders(folder: epath.Path) -> list[epath.Path]:
    """Returns the folder and those above it that do not exist, outermost first."""
    if is_remote(folder):
        return []
    return [one for one in (folder, *folder.parents) if not one.exists()][::-1]


def check_output(path: PathLike, what: str) -> None:
    """Refuses an output file that cannot be written, before the work that computes its content.

    Writes a file beside it and removes it again, with the folders created for it. On gs:// only the
    address is checked. Messages begin with `what`, the flag and its value.

    Raises:
      UserError: the file cannot be written.
      StorageError: the disk is full, or the storage failed.
    """
    target = as_path(path)
    if is_remote(path):
        return
    with storage_errors(f"{what}: cannot be written"), contextlib.ExitStack() as undo:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISDIR(os.stat(target).st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(target))
        for folder in _missing_folders(target.parent):
            folder.mkdir(exist_ok=True)
            undo.callback(_remove_empty, folder)
        temporary = _temporary(target)
        undo.callback(temporary.unlink, missing_ok=True)
        temporary.write_bytes(b"")


def _remove_empty(folder: epath.Path) -> None:
    with contextlib.suppress(OSError):  # another process may use it meanwhile
        folder.rmdir()


def _temporary(target: epath.Path) -> epath.Path:
    return target.with_name(f".{target.name}.{os.getpid()}")


def write_atomically(path: PathLike, text: str) -> None:
    """Replaces a text file as a whole: readers see the old or the new content, never a part.

    Raises:
      UserError: the path cannot be written.
      StorageError: the disk is full, or the storage failed.
    """
    target = as_path(path)
    with storage_errors(f"{path}: cannot be written"):
        if is_remote(path):
            target.write_text(text)
            return
        temporary = _temporary(target)
        try:
            temporary.write_text(text)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def append_whole(path: PathLike, data: bytes) -> None:
    """Appends to a local file all of the data, or nothing.

    Raises:
      OSError: the data cannot be written; the file is as it was.
    """
    end = None
    try:
        with open(path, "ab", buffering=0) as file:
            end, rest = file.seek(0, os.SEEK_END), data
            while rest:
                rest = rest[file.write(rest) :]
    except OSError:
        if end is not None:
            os.truncate(path, end)
        raise


def sync(path: PathLike) -> None:
    """Writes a local file, or the names in a local directory, through to the disk.

    On gs:// an object is durable once it is written.
    """
    if is_remote(path):
        return
    descriptor = os.open(as_path(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system without it
            raise
    finally:
        os.close(descriptor)


def sync_all(directory: PathLike) -> None:
    """Writes a local directory and all that it holds through to the disk.

    Call it before the rename or the marker that declares the content complete.
    """
    for folder, _, names in os.walk(directory if not is_remote(directory) else "", topdown=False):
        for name in names:
            sync(os.path.join(folder, name))
        sync(folder)
