"""Removal of checkpoints, and moving damaged ones aside; names as in `layout`."""

import os

from etils import epath

from prts_jax.checkpoint.damage import DamagedError
from prts_jax.checkpoint.layout import COMMIT_MARKER, REMOVING, contents
from prts_jax.paths import as_path, is_remote, sync


def set_aside(directory: str, damage: DamagedError) -> str:
    """Moves a run's newest checkpoint aside, so that the run resumes from the one before.

    On gs:// its objects are copied to the new name and then removed.

    Args:
      directory: the run's `checkpoints` directory.
      damage: the error of the checkpoint.

    Returns:
      Message for the user.

    Raises:
      DamagedError: it is not the newest checkpoint, or none before it is complete; then nothing
        was moved.
    """
    there = contents(directory)
    step = there.steps[-1] if there.steps else 0
    if damage.checkpoint != f"{directory}/{step}":
        raise damage
    before = [other for other in there.complete if other < step]
    if not before:
        lacking = [f"{other} has no {file}" for other, file in sorted(there.broken.items())]
        aside = [f"{name} was moved aside" for name in there.aside]
        others = f" ({', '.join(lacking + aside)})" if lacking + aside else ""
        raise DamagedError(
            damage.checkpoint,
            damage.item,
            f"{damage}; no other checkpoint in {directory} is usable{others}: put the files back "
            "from a copy, or name a new workdir to start anew",
        ) from damage
    name = f"{step}.damaged-{damage.item}"
    number = 1 + sum(other.startswith(name) for other in there.aside)
    target = as_path(directory) / (name if number == 1 else f"{name}-{number}")
    source = as_path(damage.checkpoint)
    if is_remote(directory):
        _copy(source, target)
        remove(directory, step)
    else:
        source.rename(target)
        sync(directory)
    return f"{damage}; moved to {target.name}, the run resumes from step {before[-1]}"


def remove(directory: str, step: int) -> None:
    """Removes a checkpoint; an interruption leaves nothing that looks like one."""
    path = as_path(directory) / str(step)
    mark = path.with_name(f"{step}{REMOVING}")
    if not is_remote(directory):
        path.rename(mark)
        delete(mark)
        return
    mark.write_text("being removed")
    (path / COMMIT_MARKER).unlink(missing_ok=True)
    delete(path)
    delete(mark)


def remove_unfinished(directory: str) -> None:
    """Removes the rests of interrupted saves and removals; the caller holds the run's lock."""
    for name in contents(directory).unfinished:  # on gs:// a checkpoint comes before its mark
        delete(as_path(directory) / name)


def delete(path: epath.Path) -> None:
    """Removes a file, a link or a directory, if it is there."""
    if path.is_dir() and not os.path.islink(path):
        path.rmtree(missing_ok=True)
    else:
        path.unlink(missing_ok=True)


def _copy(source: epath.Path, target: epath.Path) -> None:
    for file in source.iterdir():
        if file.is_dir():
            _copy(file, target / file.name)
        else:
            file.copy(target / file.name, overwrite=True)
