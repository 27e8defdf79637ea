"""Each check of `prts tpu doctor` against answers of gcloud, good and bad."""

import dataclasses
import json
import threading

import pytest

from prts_jax.launch import doctor, rent
from prts_jax.launch.gcloud import Result
from prts_jax.launch.settings import Settings
from tests.launch.fake_gcloud import FakeCloud

ACCOUNT = "t@p.iam.gserviceaccount.com"
SETTINGS = Settings("grown", "us-west4-a", "p", "gs://bkt", "v5litepod-16", service_account=ACCOUNT)


def policy(role: str = "roles/storage.objectAdmin") -> list[dict]:
    return [{"role": role, "members": [f"serviceAccount:{ACCOUNT}"]}]


def quota(value: int, identity: str = "TPUV5sLitepodPerProjectPerZone") -> list[dict]:
    zone = {"zone": "us-west4-a"}
    return [
        {
            "quotaId": identity,
            "dimensionsInfos": [{"dimensions": zone, "details": {"value": str(value)}}],
        }
    ]


def rule(*ports: str, protocol: str = "tcp", disabled: bool = False) -> list[dict]:
    return [{"allowed": [{"IPProtocol": protocol, "ports": list(ports)}], "disabled": disabled}]


GOOD = {
    "account": "me@example.com",
    "APIs": "compute.googleapis.com\nstorage.googleapis.com\ntpu.googleapis.com\n",
    "quota": quota(64),
    "ports": rule("0-65535"),
    "bucket": {"location": "US-WEST4"},
    "service account": {"email": ACCOUNT},
    "access": {"bindings": policy()},
}


def judge(settings: Settings, title: str, answer) -> tuple[str, str]:
    check = next(check for check in doctor.checks(settings) if check.title == title)
    if isinstance(answer, Result):
        return check.judge(answer)
    return check.judge(Result(0, answer if isinstance(answer, str) else json.dumps(answer)))


@pytest.mark.parametrize("title", GOOD)
def test_a_project_that_is_ready_needs_no_fix(title):
    assert judge(SETTINGS, title, GOOD[title])[1] == ""


BAD = [
    ("account", "", "gcloud auth login"),
    ("APIs", "compute.googleapis.com storage.googleapis.com", "services enable tpu.googleapis.com"),
    ("quota", quota(8), "quotas"),
    ("quota", quota(64, "TPUV5pPerProject"), "quotas"),
    ("quota", Result(1, "", "ERROR: PERMISSION_DENIED"), "quotas"),
    ("ports", [], "tcp:8476"),
    ("ports", rule("22", "8000-8475"), "tcp:8476"),
    ("ports", rule(disabled=True), "tcp:8476"),
    ("ports", rule(protocol="udp"), "firewall-rules create"),
    ("bucket", {"location": "EUROPE-WEST4"}, "--location=us-west4"),
    ("bucket", {"location": "US"}, "--location=us-west4"),
    ("bucket", Result(1, "", "ERROR: gs://bkt not found: 404"), "buckets create gs://bkt"),
    ("service account", Result(1, "", "ERROR: NOT_FOUND"), "iam service-accounts create t"),
    (
        "access",
        {"bindings": policy("roles/storage.objectViewer")},
        "add-iam-policy-binding gs://bkt",
    ),
    ("access", {}, f"--member=serviceAccount:{ACCOUNT}"),
]


@pytest.mark.parametrize(("title", "answer", "fix"), BAD)
def test_every_finding_has_the_command_that_fixes_it(title, answer, fix):
    assert fix in judge(SETTINGS, title, answer)[1]


def test_all_ports_and_unlimited_quota_are_enough():
    assert judge(SETTINGS, "ports", rule(protocol="all"))[1] == ""
    assert judge(SETTINGS, "quota", quota(-1)) == ("unlimited", "")
    spot = dataclasses.replace(SETTINGS, provisioning="spot")
    assert judge(spot, "quota", quota(64))[1] != ""
    assert judge(spot, "quota", quota(64, "PreemptibleTPUV5sLitepod"))[1] == ""


@pytest.mark.parametrize(("hosts", "fix"), [(4, ""), (3, "prts tpu delete")])
def test_running_hosts_are_counted(hosts, fix):
    cloud = FakeCloud(hosts=hosts)
    rent.rent(SETTINGS, "#", cloud)
    findings = {finding.title: finding for finding in doctor.examine(SETTINGS, cloud)}
    assert findings["hosts"].text == f"{hosts} of 4 answer"
    assert findings["hosts"].fix.startswith(fix)
    assert findings["Python of hosts"].text == "3.12.1 jax 0.10.2"
    assert ("all-reduce" in findings) == (hosts == 4)


@pytest.mark.parametrize("slices", [1, 2])
def test_the_all_reduce_runs_on_all_hosts_of_a_group_at_once(slices):
    """Each host's process waits for the others, as a collective does."""
    chosen = Settings("grown", "us-east5-a", "p", "gs://bkt", "v6e-16", slices=slices)
    cloud, together = FakeCloud(hosts=4), threading.Barrier(4, timeout=20)
    rent.rent(chosen, "#", cloud)

    def run(command, stdin=None):
        if any("process_allgather" in word for word in command):
            together.wait()
            return Result(0, "sum 4 of 4\n")
        return cloud(command, stdin)

    findings = {finding.title: finding for finding in doctor.examine(chosen, run)}
    assert findings["hosts"] == doctor.Finding("hosts", f"{4 * slices} of {4 * slices} answer")
    assert ("all-reduce" in findings) == (slices == 1)
    if slices == 1:
        assert findings["all-reduce"].text == "4 of 4 hosts have the sum of all"
        assert findings["all-reduce"].fix == ""


def test_hosts_that_do_not_run_are_not_checked():
    findings = doctor.examine(dataclasses.replace(SETTINGS, bucket=""), FakeCloud())
    lines = [str(finding) for finding in findings]
    assert any(line.startswith("ok  slices: ABSENT") for line in lines)
    assert any("FIX bucket" in line for line in lines)
