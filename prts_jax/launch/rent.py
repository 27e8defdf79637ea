"""Rents and releases slices on either service."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prts_jax.errors import StorageError
from prts_jax.launch import mig, queued
from prts_jax.launch.gcloud import Command, Result, Runner
from prts_jax.launch.settings import BACKENDS, Settings, Slice, slice_of
from prts_jax.launch.status import Status


@dataclass(frozen=True)
class Service:
    """A service's functions from settings to gcloud's argument lists, and to a state."""

    create: Callable[[Settings, Slice, str], list[Command]]
    delete: Callable[[Settings, Runner | None, bool], list[Command]]
    describe: Callable[[Settings, Slice, Runner], Status]
    on_hosts: Callable[[Settings, Slice, Runner | None, str, str], list[Command]]


SERVICES = {
    "queued": Service(queued.create, queued.delete, queued.describe, queued.on_hosts),
    "mig": Service(mig.create, mig.delete, mig.describe, mig.on_hosts),
}


def service_of(settings: Settings) -> tuple[Service, Slice]:
    """Returns the service and the slice of the settings; without an accelerator, `--backend`'s.

    Raises:
      UserError: see `slice_of`.
    """
    if settings.accelerator:
        size = slice_of(settings)
    else:
        size = Slice(settings.backend or "queued", 0, 0, "", "", "", "")
    return SERVICES[size.backend], size


def rent(settings: Settings, script: str, run: Runner) -> Result:
    """Rents the slices, whose hosts run a bash script at each boot; returns the last result.

    Stops at the first failure.

    Raises:
      UserError: see `slice_of`.
    """
    service, size = service_of(settings)
    result = Result(0)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "startup.sh"
        file.write_text(script, encoding="utf-8")
        for command in service.create(settings, size, str(file)):
            result = run(command)
            if result.code:
                break
    return result


def services_to_release(settings: Settings) -> list[Service]:
    """Returns the services in which the run may have slices: both, where nothing says which."""
    if settings.accelerator or settings.backend:
        return [service_of(settings)[0]]
    return [SERVICES[name] for name in BACKENDS]


def release(settings: Settings, run: Runner) -> int:
    """Deletes all that the run rents, and may be repeated; asks no questions.

    Returns the number of things deleted: requests, groups, templates, policies.

    Raises:
      StorageError: gcloud cannot list or delete something, which may cost money.
    """
    count = 0
    for service in services_to_release(settings):
        for command in service.delete(settings, run, True):
            result = run(command)
            if result.code and not result.absent:
                raise StorageError(
                    f"gcloud cannot delete all of {settings.name} ({result.reason}); "
                    "run `prts tpu delete` again, or it may cost money"
                )
            count += 1
    return count
