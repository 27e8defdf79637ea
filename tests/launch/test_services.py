"""Argument lists and states of both services, and the settings that they follow from."""

import dataclasses
import json
import tomllib
from pathlib import Path

import pytest

from prts_jax.errors import UserError
from prts_jax.launch import mig, queued, rent, settings, status
from prts_jax.launch.gcloud import Result
from prts_jax.launch.settings import Settings, slice_of

QUEUED = Settings("grown", "us-west4-a", "p", accelerator="v5litepod-16")
MIG = Settings("grown", "us-east5-a", "p", accelerator="v5p-128")
NOT_FOUND = Result(1, "", "ERROR: NOT_FOUND")


def lines(chosen: Settings, script: str = "") -> list[str]:
    size = slice_of(chosen)
    return [
        " ".join(command) for command in rent.SERVICES[size.backend].create(chosen, size, script)
    ]


def test_a_group_is_a_policy_a_template_and_the_group():
    assert lines(MIG, "boot.sh") == [
        "gcloud compute resource-policies create workload-policy grown-slice-0 "
        "--type=HIGH_THROUGHPUT --accelerator-topology=4x4x4 --region=us-east5 --project=p",
        "gcloud compute instance-templates create grown-template --machine-type=ct5p-hightpu-4t "
        "--image-family=ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e "
        "--image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB "
        "--maintenance-policy=TERMINATE --scopes=cloud-platform "
        "--metadata-from-file=startup-script=boot.sh --project=p",
        "gcloud compute instance-groups managed create grown-slice-0 --template=grown-template "
        "--base-instance-name=grown-slice-0 --zone=us-east5-a "
        "--default-action-on-vm-failure=do-nothing "
        "--workload-policy=projects/p/regions/us-east5/resourcePolicies/grown-slice-0 "
        "--size=16 --project=p",
    ]


def test_flex_start_on_compute_engine_is_a_resize_request_of_an_empty_group():
    commands = lines(dataclasses.replace(MIG, provisioning="flex_start", max_run="12h"))
    assert "--provisioning-model=FLEX_START --max-run-duration=12h" in commands[1]
    assert "--size=0" in commands[2]
    assert commands[3] == (
        "gcloud compute instance-groups managed resize-requests create grown-slice-0 "
        "--resize-request=grown-slice-0 --resize-by=16 --zone=us-east5-a "
        "--requested-run-duration=12h --project=p"
    )


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            {"provisioning": "spot"},
            "--provisioning-model=SPOT --instance-termination-action=DELETE",
        ),
        (
            {"provisioning": "reserved", "reservation": "r"},
            "--provisioning-model=RESERVATION_BOUND --instance-termination-action=DELETE "
            "--reservation-affinity=specific --reservation=r",
        ),
        ({"subnetwork": "s", "network": "n"}, "--network=n --subnet=s --region=us-east5"),
        ({"internal_ips": True}, "--no-address"),
        ({"accelerator": "v6e-8"}, "--machine-type=ct6e-standard-8t"),
        (
            {"accelerator": "tpu7x-128"},
            "--machine-type=tpu7x-standard-4t --image-family=ubuntu-accel-2404",
        ),
        ({"machine_type": "ct5p-hightpu-4t-tpu"}, "--machine-type=ct5p-hightpu-4t-tpu"),
    ],
)
def test_the_template_follows_the_settings(change, wanted):
    template = next(c for c in lines(dataclasses.replace(MIG, **change)) if "templates" in c)
    assert wanted in template


def test_several_slices_are_as_many_groups_of_one_template():
    commands = lines(dataclasses.replace(MIG, slices=2))
    assert [c.split()[2] for c in commands].count("instance-templates") == 1
    assert sum("managed create grown-slice-" in c for c in commands) == 2


def test_one_host_needs_no_workload_policy():
    commands = lines(dataclasses.replace(MIG, accelerator="v5p-8"))
    assert len(commands) == 2
    assert "workload-policy" not in "".join(commands)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({}, "gcloud compute tpus queued-resources create grown --zone=us-west4-a --project=p "
         "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=grown"),
        ({"provisioning": "spot", "valid_until": "6h"}, "--spot --valid-until-duration=6h"),
        (
            {"provisioning": "flex_start"},
            "gcloud alpha compute tpus queued-resources create grown --zone=us-west4-a --project=p "
            "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=grown "
            "--provisioning-model=flex-start --max-run-duration=7d",
        ),
        ({"slices": 4, "provisioning": "reserved"}, "--node-count=4 --node-prefix=grown --res"),
        ({"accelerator": "v6e-64", "backend": "queued"}, "--runtime-version=v2-alpha-tpuv6e"),
    ],
)  # fmt: skip
def test_a_queued_request_follows_the_settings(change, wanted):
    (command,) = lines(dataclasses.replace(QUEUED, **change))
    assert wanted in command


@pytest.mark.parametrize(
    ("accelerator", "backend"),
    [
        ("v4-8", "queued"),
        ("v5litepod-16", "queued"),
        ("v5p-8", "mig"),
        ("v6e-8", "mig"),
        ("tpu7x-16", "mig"),
    ],
)
def test_the_service_follows_from_the_generation(accelerator, backend):
    assert slice_of(dataclasses.replace(MIG, accelerator=accelerator)).backend == backend


def test_a_newer_generation_is_passed_through():
    newer = {"accelerator": "tpu8-64", "machine_type": "tpu8-standard-4t", "topology": "4x4x2"}
    size = slice_of(dataclasses.replace(MIG, **newer))
    assert (size.backend, size.chips, size.hosts) == ("mig", 32, 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"accelerator": "tpu8-64"}, "--machine_type"),
        ({"accelerator": ""}, "--accelerator_type"),
        ({"accelerator": "v5p-24"}, "--topology"),
        ({"topology": "4x4x8"}, "64 chips"),
        ({"accelerator": "v4-8", "backend": "mig"}, "Compute Engine does not serve"),
        ({"accelerator": "tpu7x-16", "backend": "queued"}, "queued resources do not serve"),
        ({"backend": "gke"}, "queued, mig"),
        ({"provisioning": "cheap"}, "spot"),
        ({"provisioning": "reserved"}, "--reservation"),
        ({"project": ""}, "--project"),
        ({"name": "a" * 50}, "40 characters"),
        ({"slices": 0}, "--slices"),
        ({"network": "--x"}, "--network"),
        ({"max_run": "soon"}, "--max_run"),
        ({"bucket": "my-bucket"}, "gs://BUCKET"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, named):
    with pytest.raises(UserError, match=named):
        lines(dataclasses.replace(MIG, **change))


def test_flags_override_the_file(tmp_path: Path):
    file = tmp_path / "tpu.toml"
    file.write_text('name = "grown"\nzone = "us-west4-a"\naccelerator = "v4-8"\nslices = 2\n')
    chosen = settings.read(str(file), {"zone": "us-central2-b", "slices": None})
    assert (chosen.name, chosen.zone, chosen.slices) == ("grown", "us-central2-b", 2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("zone = 3", "no str"),
        ("slices = true", "no int"),
        ("zones = 'a'", "did you mean zone"),
        ("name = ", "not TOML"),
        ("", "--name"),
    ],
)
def test_a_file_of_settings_with_a_mistake_is_refused(tmp_path: Path, text, named):
    file = tmp_path / "tpu.toml"
    file.write_text(text)
    with pytest.raises(UserError, match=named):
        settings.read(str(file), {})
    with pytest.raises(UserError, match="check the path"):
        settings.read(str(tmp_path / "none.toml"), {})


def test_every_setting_is_explained_and_the_example_is_valid():
    assert all(field.metadata["help"] for field in dataclasses.fields(Settings))
    example = tomllib.loads((settings.__doc__ or "").partition("::")[2].replace("\n    ", "\n"))
    assert slice_of(Settings(**example)).backend == "mig"


def test_the_settings_of_the_docs_are_valid():
    page = Path(__file__).parents[2].joinpath("docs/tpu.md").read_text()
    example = tomllib.loads(page.partition("```toml\n")[2].partition("```")[0])
    assert slice_of(Settings(**example)).hosts == 4


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("ACCEPTED", status.WAITING),
        ("WAITING_FOR_RESOURCES", status.WAITING),
        ("PROVISIONING", status.PROVISIONING),
        ("ACTIVE", status.ACTIVE),
        ("SUSPENDING", status.DELETING),
        ("SUSPENDED", status.SUSPENDED),
        ("FAILED", status.FAILED),
    ],
)
def test_states_of_a_queued_request(name, state):
    assert queued.parse(Result(0, json.dumps({"state": {"state": name}})), 4).state == state


@pytest.mark.parametrize("parse", [queued.parse, mig.parse])
def test_no_answer_is_no_absence(parse):
    assert parse(NOT_FOUND, 4).state == status.ABSENT
    for result in (Result(1, "", "503"), Result(0, "not json"), Result(0, "3"), Result(0, "null")):
        assert parse(result, 4).state == status.UNKNOWN


def member(action: str = "NONE", state: str = "RUNNING", code: str = "") -> dict:
    errors = {"errors": {"errors": [{"code": code, "message": "m"}]}} if code else {}
    return {"currentAction": action, "instanceStatus": state, "lastAttempt": errors}


@pytest.mark.parametrize(
    ("members", "state"),
    [
        ([member()] * 2, status.ACTIVE),
        ([member()], status.PARTIAL),
        ([member(), member(state="TERMINATED")], status.PARTIAL),
        ([], status.PARTIAL),
        ([member("CREATING", "")] * 2, status.PROVISIONING),
        ([member(), member("CREATING", "STAGING")], status.PROVISIONING),
        ([member("CREATING", "", "ZONE_RESOURCE_POOL_EXHAUSTED")] * 2, status.WAITING),
        ([member("CREATING", "", "QUOTA_EXCEEDED")] * 2, status.FAILED),
        ([member("DELETING")] * 2, status.DELETING),
    ],
)
def test_states_of_a_group(members, state):
    assert mig.parse(Result(0, json.dumps(members)), 2).state == state


def test_slices_are_as_good_as_the_worst_of_them():
    active = status.Status(status.ACTIVE, 4, 4)
    waiting = status.Status(status.WAITING, 0, 4, "none left")
    assert str(status.worst([active, waiting])) == "WAITING (4 of 8 hosts): none left"
    missing = status.worst([active, status.Status(status.ABSENT, 0, 4)])
    assert (missing.state, missing.expected) == (status.PARTIAL, 8)


def test_ssh_reaches_one_host_or_all():
    instances = [{"instance": f"zones/z/instances/grown-slice-0-{i}"} for i in range(3)]
    commands = mig.on_hosts(
        MIG, slice_of(MIG), lambda c: Result(0, json.dumps(instances)), "date", "all"
    )
    assert [c[3] for c in commands] == ["grown-slice-0-0", "grown-slice-0-1", "grown-slice-0-2"]
    (one,) = mig.on_hosts(MIG, slice_of(MIG), None, "", "0/0")
    assert one == ("gcloud", "compute", "ssh", "INSTANCE", "--zone=us-east5-a", "--project=p")
    with pytest.raises(UserError, match="--host"):
        mig.on_hosts(MIG, slice_of(MIG), None, "", "7/0")
    (one,) = queued.on_hosts(QUEUED, slice_of(QUEUED), None, "date", "1/3")
    assert one[-3:] == ("--node=1", "--worker=3", "--command=date")
