"""The code of a launch: the working tree as a .tar.gz on the bucket, named by its commit."""

from pathlib import Path

from prts_jax.errors import UserError
from prts_jax.launch.gcloud import Command, Runner

_REPOSITORY = str(Path(__file__).resolve().parents[2])


def pack(folder: str, file: str, run: Runner) -> tuple[str, list[Command]]:
    """Returns the URL of an archive in the run's folder, and the commands that make and copy it.

    Uncommitted changes of tracked files are part of the archive, as a commit that `git stash
    create` makes without touching the tree; the name then ends in `-changed-COMMIT`. Untracked
    files are left out.

    Raises:
      UserError: this package is not a git checkout.
    """
    head = run(_git("rev-parse", "HEAD"))
    if head.code:
        raise UserError("--source: is missing, and this is no git checkout; give gs://….tar.gz")
    commit = name = head.stdout.strip()
    changes = run(_git("stash", "create"))
    if changes.stdout.strip():
        commit = changes.stdout.strip()
        name = f"{name}-changed-{commit[:12]}"
    url = f"{folder.rstrip('/')}/code/{name}.tar.gz"
    archive = _git("archive", "--format=tar.gz", f"--output={file}", commit)
    return url, [archive, ("gcloud", "storage", "cp", "--quiet", file, url)]


def _git(*words: str) -> Command:
    return ("git", "-C", _REPOSITORY, *words)
