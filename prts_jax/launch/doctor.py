"""Checks of a project and its slices; each finding has the command that fixes it.

A check is a gcloud command and a function from its output to a finding.
"""

import functools
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from prts_jax.launch import doctor_hosts, rent, status
from prts_jax.launch.finding import Finding
from prts_jax.launch.gcloud import Command, Result, Runner
from prts_jax.launch.settings import Settings, Slice, slice_of

PORTS = (8080, 8471, 8476)
"""TCP ports between hosts: Megascale, libtpu, JAX's coordinator."""

_WRITERS = ("roles/storage.objectAdmin", "roles/storage.objectUser", "roles/storage.admin")


@dataclass(frozen=True)
class Check:
    """A command and the meaning of its output: a text, and a fix or ""."""

    title: str
    command: Command
    judge: Callable[[Result], tuple[str, str]]


@dataclass(frozen=True)
class _Target:
    """The slices to check for, their bucket without a final slash, and `--project` for a fix."""

    settings: Settings
    size: Slice
    bucket: str
    flag: str

    @property
    def network(self) -> str:
        return self.settings.network or "default"


_JSON, _NAME, _ACCOUNT = "--format=json", "--format=value(config.name)", "--format=value(account)"
_BUCKETS, _ACCOUNTS = ("storage", "buckets"), ("iam", "service-accounts")


def checks(settings: Settings) -> list[Check]:
    """Returns the checks that need no slice; those of a setting that is not given are left out.

    Raises:
      UserError: see `slice_of`.
    """
    bucket, account = settings.bucket.rstrip("/"), settings.service_account
    project = (f"--project={settings.project}",) if settings.project else ()
    target = _Target(settings, slice_of(settings), bucket, "".join(f" {word}" for word in project))
    network = f"--filter=network~/{target.network}$ AND direction=INGRESS"
    service = f"--service={_service(target.size)}.googleapis.com"
    table: list[tuple[str, bool, Command, Callable[[_Target, Result], tuple[str, str]]]] = [
        # Title, whether its settings are given, command, judge.
        ("account", True, ("auth", "list", "--filter=status:ACTIVE", _ACCOUNT), _logged_in),
        ("APIs", True, ("services", "list", "--enabled", _NAME), _apis),
        ("quota", True, ("beta", "quotas", "info", "list", service, _JSON), _quota),
        ("ports", True, ("compute", "firewall-rules", "list", network, _JSON), _ports),
        ("bucket", bool(bucket), (*_BUCKETS, "describe", bucket, _JSON), _bucket),
        ("service account", bool(account), (*_ACCOUNTS, "describe", account, _JSON), _identity),
        ("access", bool(bucket and account), (*_BUCKETS, "get-iam-policy", bucket, _JSON), _access),
    ]
    return [
        Check(title, ("gcloud", *words, *project), functools.partial(judge, target))
        for title, given, words, judge in table
        if given
    ]


def _service(size: Slice) -> str:
    """Returns the name of the API that rents the slice."""
    return "tpu" if size.backend == "queued" else "compute"


def examine(settings: Settings, run: Runner) -> list[Finding]:
    """Runs all checks, those on hosts where slices run.

    Raises:
      UserError: see `slice_of`.
    """
    findings = [_python()]
    for check in checks(settings):
        findings.append(Finding(check.title, *check.judge(run(check.command))))
    if not settings.bucket:
        fix = 'set bucket = "gs://BUCKET" in the settings'
        findings.append(Finding("bucket", "is not set", fix))
    if not settings.service_account:
        text = "not set: the hosts run as the project's default service account"
        findings.append(Finding("service account", text))
    service, size = rent.service_of(settings)
    seen = service.describe(settings, size, run)
    if seen.state == status.UNKNOWN:
        findings.append(Finding("slices", seen.detail, "prts tpu status"))
    elif seen.state != status.ACTIVE:
        findings.append(Finding("slices", f"{seen}; hosts are not checked"))
    else:
        findings += doctor_hosts.check(settings, run)
    return findings


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("Python", f"{version} on this machine")


def _json(result: Result) -> Any:
    """Returns parsed output; None where the command failed or printed something else."""
    try:
        return json.loads(result.stdout) if result.code == 0 else None
    except ValueError:
        return None


def _logged_in(target: _Target, result: Result) -> tuple[str, str]:
    account = result.stdout.strip()
    return (account, "") if account else ("nobody is logged in", "gcloud auth login")


def _apis(target: _Target, result: Result) -> tuple[str, str]:
    flag = target.flag
    if result.code:
        return result.reason, f"gcloud auth login && gcloud services list --enabled{flag}"
    enabled = set(result.stdout.split())
    if "storage-api.googleapis.com" in enabled:
        # Cloud Storage's API has two names; either serves.
        enabled.add("storage.googleapis.com")
    needed = {f"{api}.googleapis.com" for api in ("compute", "storage", _service(target.size))}
    if missing := sorted(needed - enabled):
        return f"{', '.join(missing)} off", f"gcloud services enable {' '.join(missing)}{flag}"
    return f"{', '.join(sorted(needed))} on", ""


def _quota(target: _Target, result: Result) -> tuple[str, str]:
    """Judges the largest limit of this generation's quotas in this zone or region.

    Google counts chips for v5e and later and cores before; a limit below the chips is too small in
    both.
    """
    settings, chips = target.settings, target.size.chips * target.settings.slices
    page = "open https://console.cloud.google.com/iam-admin/quotas and ask for more"
    rows = _json(result)
    if rows is None:
        return f"cannot be read ({result.reason})", page
    prefix = settings.accelerator.partition("-")[0]
    word = {"v5litepod": "v5", "tpu7x": "7x"}.get(prefix, prefix)
    preemptible = settings.provisioning in ("spot", "flex_start")
    limits = [
        int(info["details"]["value"])
        for row in rows
        if _is_ours(str(row.get("quotaId", "")), word, prefix == "v5litepod", preemptible)
        for info in row.get("dimensionsInfos", [])
        if str((info.get("details") or {}).get("value", "")).lstrip("-").isdigit()
        and _is_here(info, settings)
    ]
    if not limits:
        return f"no quota for {settings.accelerator} is listed in {settings.zone}", page
    most = max(limits)
    if 0 <= most < chips:
        return f"{most} in {settings.zone}, {chips} chips are needed", page
    return "unlimited" if most < 0 else f"{most} in {settings.zone}", ""


def _is_ours(quota: str, word: str, lite: bool, preemptible: bool) -> bool:
    name = quota.lower()
    if "tpu" not in name or word not in name:
        return False
    return ("lite" in name) == lite and ("preemptible" in name) == preemptible


def _is_here(info: dict[str, Any], settings: Settings) -> bool:
    places = info.get("applicableLocations") or list((info.get("dimensions") or {}).values())
    return not places or bool({settings.zone, settings.region, "global"} & set(places))


def _bucket(target: _Target, result: Result) -> tuple[str, str]:
    bucket, region = target.bucket, target.settings.region
    name = re.sub(r"[^a-z0-9-]", "-", bucket.removeprefix("gs://"))
    create = f"gcloud storage buckets create gs://{name}-{region} --location={region}"
    if result.absent:
        return "does not exist", f"gcloud storage buckets create {bucket} --location={region}"
    description = _json(result)
    if description is None:
        return result.reason, f"gcloud storage buckets describe {bucket}"
    location = str(description.get("location", "")).lower()
    if location != region:
        return f"lies in {location}, the slices in {region}: slow, and each byte costs", create
    return f"in {region}", ""


def _identity(target: _Target, result: Result) -> tuple[str, str]:
    account = target.settings.service_account
    if result.code == 0:
        return account, ""
    name = account.partition("@")[0]
    return result.reason, f"gcloud iam service-accounts create {name}{target.flag}"


def _access(target: _Target, result: Result) -> tuple[str, str]:
    bucket, account = target.bucket, target.settings.service_account
    member = f"serviceAccount:{account}"
    policy = _json(result) or {}
    for binding in policy.get("bindings", []):
        if binding.get("role") in _WRITERS and member in binding.get("members", []):
            return f"{account} writes {bucket} ({binding['role']})", ""
    grant = f"--member={member} --role={_WRITERS[0]}"
    return (
        f"{account} has no role on {bucket} that writes",
        f"gcloud storage buckets add-iam-policy-binding {bucket} {grant}",
    )


def _ports(target: _Target, result: Result) -> tuple[str, str]:
    wanted = ",".join(f"tcp:{port}" for port in PORTS)
    fix = (
        f"gcloud compute firewall-rules create prts-tpu --network={target.network} "
        f"--direction=INGRESS --allow={wanted} --source-ranges=10.0.0.0/8{target.flag}"
    )
    rules = _json(result)
    if rules is None:
        return result.reason, fix
    closed = [port for port in PORTS if not any(_opens(rule, port) for rule in rules)]
    if closed:
        return (
            f"{', '.join(map(str, closed))} closed between hosts in network {target.network}",
            fix,
        )
    return f"{', '.join(map(str, PORTS))} open", ""


def _opens(rule: dict[str, Any], port: int) -> bool:
    if rule.get("disabled"):
        return False
    for allowed in rule.get("allowed") or []:
        if allowed.get("IPProtocol") not in ("tcp", "all", "6"):
            continue
        ports = allowed.get("ports")
        if not ports:
            return True
        for text in ports:
            low, _, high = str(text).partition("-")
            if int(low) <= port <= int(high or low):
                return True
    return False
