"""Managed instance groups of Compute Engine: gcloud's argument lists and states.

One instance template for the run; for every slice a managed instance group and, where a slice has
several hosts, a workload policy that connects them. Source: Compute Engine documentation, "Create a
MIG with multi-host TPU slice", "Request TPU Spot VMs" and "Create a resize request"; gcloud
reference.
"""

import dataclasses
import json
from typing import Any

from prts_jax.errors import StorageError, UserError
from prts_jax.launch import status
from prts_jax.launch.gcloud import Command, Result, Runner
from prts_jax.launch.settings import Settings, Slice
from prts_jax.launch.status import Status

MOST_CHARACTERS = 40
"""Longest name of a run, because Compute Engine adds to it and allows 63 characters."""

_POLICIES = ("compute", "resource-policies")
_TEMPLATES = ("compute", "instance-templates")
_GROUPS = ("compute", "instance-groups", "managed")


def _command(settings: Settings, *words: str) -> Command:
    project = (f"--project={settings.project}",) if settings.project else ()
    return ("gcloud", *words, *project)


def slice_names(settings: Settings) -> list[str]:
    """Returns the names of the slices' groups and workload policies."""
    return [f"{settings.name}-slice-{i}" for i in range(settings.slices)]


def create(settings: Settings, size: Slice, startup_script: str = "") -> list[Command]:
    """Returns the commands that rent the slices, in order.

    Every host runs the start-up script as root at each boot; "" for none.

    Raises:
      UserError: the name is too long, or no project or, with --reserved, no reservation is given.
    """
    if len(settings.name) > MOST_CHARACTERS:
        raise UserError(
            f"--name={settings.name}: at most {MOST_CHARACTERS} characters here; shorten it"
        )
    zone, region = f"--zone={settings.zone}", f"--region={settings.region}"
    policies, groups = [], []
    for name in slice_names(settings):
        group = [name, f"--template={settings.name}-template", f"--base-instance-name={name}", zone]
        # A repaired host would join a slice whose job has ended; `babysit` replaces whole slices.
        group.append("--default-action-on-vm-failure=do-nothing")
        if size.hosts > 1:
            kind = ("--type=HIGH_THROUGHPUT", f"--accelerator-topology={size.topology}")
            create_policy = (*_POLICIES, "create", "workload-policy", name, *kind, region)
            policies.append(_command(settings, *create_policy))
            group.append(f"--workload-policy={_policy_path(settings, name)}")
        waits = settings.provisioning == "flex_start"
        group.append(f"--size={0 if waits else size.hosts}")
        groups.append(_command(settings, *_GROUPS, "create", *group))
        if waits:
            request = (f"--resize-request={name}", f"--resize-by={size.hosts}", zone)
            duration = f"--requested-run-duration={settings.max_run or '7d'}"
            words = (*_GROUPS, "resize-requests", "create", name, *request, duration)
            groups.append(_command(settings, *words))
    return [*policies, _template(settings, size, startup_script), *groups]


def _policy_path(settings: Settings, name: str) -> str:
    if not settings.project:
        raise UserError("--project: is missing; a workload policy is named by its full path")
    return f"projects/{settings.project}/regions/{settings.region}/resourcePolicies/{name}"


def _template(settings: Settings, size: Slice, startup_script: str) -> Command:
    flags = [
        f"--machine-type={size.machine_type}",
        f"--image-family={size.image_family}",
        "--image-project=ubuntu-os-accelerator-images",
        f"--boot-disk-size={settings.disk_gb}GB",
        "--maintenance-policy=TERMINATE",
        "--scopes=cloud-platform",
    ]
    ends = "--instance-termination-action=DELETE"
    if settings.provisioning == "spot":
        flags += ["--provisioning-model=SPOT", ends]
    elif settings.provisioning == "flex_start":
        duration = f"--max-run-duration={settings.max_run or '7d'}"
        flags += ["--provisioning-model=FLEX_START", duration, ends, "--reservation-affinity=none"]
    elif settings.provisioning in ("reserved", "guaranteed"):
        if not settings.reservation:
            raise UserError("--reservation: is missing; Compute Engine needs its name")
        bound = ("--reservation-affinity=specific", f"--reservation={settings.reservation}")
        flags += ["--provisioning-model=RESERVATION_BOUND", ends, *bound]
    for flag, value in (
        ("service-account", settings.service_account),
        ("network", settings.network),
        ("subnet", settings.subnetwork),
        ("region", settings.region if settings.subnetwork else ""),
        ("metadata-from-file", f"startup-script={startup_script}" if startup_script else ""),
    ):
        if value:
            flags.append(f"--{flag}={value}")
    if settings.internal_ips:
        flags.append("--no-address")
    return _command(settings, *_TEMPLATES, "create", f"{settings.name}-template", *flags)


def delete(settings: Settings, run: Runner | None, quiet: bool) -> list[Command]:
    """Returns the commands that delete groups, template and policies, of any number of slices.

    `run` asks gcloud what exists; None assumes what `create` makes. With `quiet` gcloud does not
    ask for confirmation.
    """
    zone, region = f"--zone={settings.zone}", f"--region={settings.region}"
    ours = f"^{settings.name}-slice-[0-9]+$"
    names, template = slice_names(settings), [f"{settings.name}-template"]
    kinds = (
        (_GROUPS, f"name~{ours} AND zone~/{settings.zone}$", zone, names),
        (_TEMPLATES, f"name={template[0]}", "", template),
        (_POLICIES, f"name~{ours} AND region~/{settings.region}$", region, names),
    )
    commands = []
    for words, where, scope, expected in kinds:
        present = expected
        if run is not None:
            listing = (*words, "list", f"--filter={where}", "--format=value(name)")
            present = _names(run(_command(settings, *listing)))
        flags = [flag for flag in (scope, "--quiet" if quiet else "") if flag]
        if present:
            commands.append(_command(settings, *words, "delete", *present, *flags))
    return commands


def _names(result: Result) -> list[str]:
    """Returns the names of a listing.

    Raises:
      StorageError: gcloud failed, so that nobody knows what exists and costs money.
    """
    if result.code and not result.absent:
        raise StorageError(f"gcloud cannot list what exists ({result.reason}); start again")
    return result.stdout.split() if result.code == 0 else []


def describe(settings: Settings, size: Slice, run: Runner) -> Status:
    """Returns the state of all groups."""
    states = []
    for name in slice_names(settings):
        seen = parse(run(_list_instances(settings, name)), size.hosts)
        if seen.state == status.PARTIAL and not seen.seen and settings.provisioning == "flex_start":
            # The group stays empty until its resize request is granted.
            seen = dataclasses.replace(seen, state=status.WAITING)
        states.append(seen)
    return status.worst(states)


def _list_instances(settings: Settings, group: str) -> Command:
    words = (*_GROUPS, "list-instances", group, f"--zone={settings.zone}", "--format=json")
    return _command(settings, *words)


def parse(result: Result, expected: int) -> Status:
    """Returns the state of one group from `list-instances --format=json`."""
    if result.absent:
        return Status(status.ABSENT, 0, expected)
    try:
        members: list[dict[str, Any]] = list(json.loads(result.stdout if not result.code else ""))
        actions = [str(member.get("currentAction", "NONE")) for member in members]
    except (ValueError, TypeError, AttributeError):
        return Status(status.UNKNOWN, 0, expected, result.reason)
    running = sum(member.get("instanceStatus") == "RUNNING" for member in members)
    errors = [error for member in members for error in _errors(member)]
    codes = [code for code, _ in errors]
    detail = ": ".join(filter(None, errors[-1])) if errors else ""
    coming = [a for a in actions if a not in ("NONE", "DELETING", "ABANDONING", "VERIFYING")]
    if members and all(action in ("DELETING", "ABANDONING") for action in actions):
        state = status.DELETING
    elif running == expected and not coming:
        return Status(status.ACTIVE, running, expected)
    elif any("QUOTA" in code for code in codes):
        state = status.FAILED
    elif coming:
        state = status.WAITING if errors else status.PROVISIONING
    else:
        state = status.PARTIAL
    return Status(state, running, expected, detail)


def _errors(member: dict[str, Any]) -> list[tuple[str, str]]:
    """Returns (code, message) of the last attempt to create a member."""
    listed = ((member.get("lastAttempt") or {}).get("errors") or {}).get("errors") or []
    return [(str(error.get("code", "")), str(error.get("message", ""))) for error in listed]


def on_hosts(
    settings: Settings, size: Slice, run: Runner | None, command: str, host: str = "all"
) -> list[Command]:
    """Returns the commands that run a shell command by ssh, one for each host.

    The hosts' names end in random letters: `run` asks gcloud for them; None writes INSTANCE. The
    command "" opens a session; `host` is `all`, or SLICE/HOST such as 0/3.

    Raises:
      UserError: there is no such host.
    """
    instances: list[str] = []
    for index, group in enumerate(slice_names(settings)):
        node, _, worker = host.partition("/")
        if host != "all" and int(node) != index:
            continue
        names = ["INSTANCE"]
        if run is not None:
            result = run(_list_instances(settings, group))
            if result.code:
                raise UserError(f"{group}: {result.reason}; see `prts tpu status`")
            names = sorted(m["instance"].rpartition("/")[2] for m in json.loads(result.stdout))
        instances += [names[int(worker)]] if worker and int(worker) < len(names) else []
        instances += names if not worker else []
    if not instances:
        raise UserError(f"--host={host}: no such host runs; see `prts tpu status`")
    tunnel = ["--tunnel-through-iap"] if settings.internal_ips else []
    remote = [f"--command={command}"] if command else []
    zone = f"--zone={settings.zone}"
    ssh = ("compute", "ssh")
    return [_command(settings, *ssh, name, zone, *tunnel, *remote) for name in instances]
