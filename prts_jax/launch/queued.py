"""Queued resources of the Cloud TPU API: gcloud's argument lists and states.

Source: gcloud reference, `gcloud compute tpus queued-resources`; Cloud TPU documentation, "Manage
queued resources" and "Request Cloud TPUs using Flex-start".
"""

import json

from prts_jax.launch import status
from prts_jax.launch.gcloud import Command, Result, Runner
from prts_jax.launch.settings import Settings, Slice
from prts_jax.launch.status import Status

_STATES = {
    "ACTIVE": status.ACTIVE,
    "SUSPENDED": status.SUSPENDED,
    "FAILED": status.FAILED,
    "SUSPENDING": status.DELETING,
    "DELETING": status.DELETING,
    "PROVISIONING": status.PROVISIONING,
}


def _arguments(settings: Settings, verb: str, *flags: str) -> Command:
    # Only `gcloud alpha` has these flags.
    alpha = verb == "create" and (settings.provisioning == "flex_start" or settings.reservation)
    gcloud = ("gcloud", "alpha") if alpha else ("gcloud",)
    project = (f"--project={settings.project}",) if settings.project else ()
    where = (settings.name, f"--zone={settings.zone}", *project)
    return (*gcloud, "compute", "tpus", "queued-resources", verb, *where, *flags)


def create(settings: Settings, size: Slice, startup_script: str = "") -> list[Command]:
    """Returns the commands that request the slices; see `mig.create`."""
    flags = [
        f"--accelerator-type={settings.accelerator}",
        f"--runtime-version={size.runtime_version}",
    ]
    if settings.slices == 1:
        flags.append(f"--node-id={settings.name}")
    else:
        flags += [f"--node-count={settings.slices}", f"--node-prefix={settings.name}"]
    if settings.provisioning == "flex_start":
        duration = settings.max_run or "7d"
        flags += ["--provisioning-model=flex-start", f"--max-run-duration={duration}"]
    elif settings.provisioning != "on_demand":
        flags.append(f"--{settings.provisioning}")
    for flag, value in (
        ("reservation", settings.reservation),
        ("valid-until-duration", settings.valid_until),
        ("service-account", settings.service_account),
        ("network", settings.network),
        ("subnetwork", settings.subnetwork),
        ("metadata-from-file", f"startup-script={startup_script}" if startup_script else ""),
    ):
        if value:
            flags.append(f"--{flag}={value}")
    if settings.internal_ips:
        flags.append("--internal-ips")
    return [_arguments(settings, "create", *flags)]


def delete(settings: Settings, run: Runner | None, quiet: bool) -> list[Command]:
    """Returns the commands that delete the request and its slices; none where there is nothing.

    `--force` also deletes suspended and failed requests, which keep their name otherwise. For the
    arguments see `mig.delete`.
    """
    if run is not None and run(_arguments(settings, "describe", "--format=json")).absent:
        return []
    return [_arguments(settings, "delete", "--force", *(["--quiet"] if quiet else []))]


def describe(settings: Settings, size: Slice, run: Runner) -> Status:
    """Returns the state of the request."""
    expected = size.hosts * settings.slices
    return parse(run(_arguments(settings, "describe", "--format=json")), expected)


def parse(result: Result, expected: int) -> Status:
    """Returns the state that `describe --format=json` printed; ACTIVE means all hosts."""
    if result.absent:
        return Status(status.ABSENT, 0, expected)
    try:
        state = json.loads(result.stdout if result.code == 0 else "")["state"]
        name = str(state["state"])
    except (ValueError, KeyError, TypeError):
        return Status(status.UNKNOWN, 0, expected, result.reason)
    error = (state.get("failedData") or {}).get("error") or {}
    shared = _STATES.get(name, status.WAITING)
    seen = expected if shared == status.ACTIVE else 0
    return Status(shared, seen, expected, str(error.get("message", "")))


def on_hosts(
    settings: Settings, size: Slice, run: Runner | None, command: str, host: str = "all"
) -> list[Command]:
    """Returns the commands that run a shell command by ssh; arguments as `mig.on_hosts`."""
    node, _, worker = host.partition("/")
    tunnel = ["--tunnel-through-iap"] if settings.internal_ips else []
    remote = [f"--command={command}"] if command else []
    flags = (f"--node={node}", f"--worker={worker or node}", *tunnel, *remote)
    return [_arguments(settings, "ssh", *flags)]
