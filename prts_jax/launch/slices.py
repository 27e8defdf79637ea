"""gcloud arguments that create and delete queued resources of Cloud TPU.

Source: gcloud reference, `gcloud compute tpus queued-resources`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from prts_jax.errors import UserError
from prts_jax.launch import accelerators

QUEUED_RESOURCES = ("gcloud", "compute", "tpus", "queued-resources")
PROVISIONING = ("on_demand", "spot", "reserved", "guaranteed")


@dataclass(frozen=True)
class QueuedResource:
    """A queued resource: name, zone and project ("" for gcloud's setting)."""

    name: str
    zone: str
    project: str = ""

    def __post_init__(self) -> None:
        """Raises UserError for names that gcloud would refuse, or read as flags."""
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", self.name):
            raise UserError(
                f"--name={self.name}: lower-case letters, digits and dashes, a letter first, at "
                "most 63; choose such a name"
            )
        if not re.fullmatch(r"[a-z]+-[a-z]+[0-9]+-[a-z]", self.zone):
            raise UserError(f"--zone={self.zone}: no zone; write one such as us-central2-b")
        if self.project and not re.fullmatch(r"[a-z0-9.:-]+", self.project):
            raise UserError(f"--project={self.project}: no project ID; `gcloud projects list`")

    def arguments(self, verb: str) -> list[str]:
        """Returns `gcloud compute tpus queued-resources VERB NAME` with zone and project."""
        project = [f"--project={self.project}"] if self.project else []
        return [*QUEUED_RESOURCES, verb, self.name, f"--zone={self.zone}", *project]


@dataclass(frozen=True)
class Request:
    """A request for slices.

    Attributes:
      accelerator_type: gcloud's name; see `accelerators.parse`.
      slices: number of slices; more than one makes a multi-slice environment.
      runtime_version: VM image; "" for the generation's.
      provisioning: one of `PROVISIONING`.
      valid_until: longest wait in gcloud's notation ("6h"); "" for no limit.
      service_account: identity of the VMs, which reads and writes the run's bucket.
      network, subnetwork: "" for the project's default network.
      internal_ips: VMs without external addresses.
      startup_script: file that every worker runs as root at each boot.
    """

    accelerator_type: str
    slices: int = 1
    runtime_version: str = ""
    provisioning: str = "on_demand"
    valid_until: str = ""
    service_account: str = ""
    network: str = ""
    subnetwork: str = ""
    internal_ips: bool = False
    startup_script: str = ""


def create(resource: QueuedResource, request: Request) -> list[str]:
    """Returns the gcloud arguments that request slices.

    Raises:
      UserError: invalid accelerator type, number of slices, duration or start-up script.
    """
    accelerator = accelerators.parse(request.accelerator_type)
    runtime = request.runtime_version or accelerator.generation.runtime_version
    if not runtime:
        raise UserError(
            f"--accelerator_type={accelerator.name}: queued resources do not serve "
            f"{accelerator.generation.prefix}; create it as a managed instance group of Compute "
            "Engine, and run `prts train --multihost` on its hosts"
        )
    flags = [f"--accelerator-type={accelerator.name}", f"--runtime-version={runtime}"]
    flags += _nodes(resource.name, request.slices)
    if request.provisioning != "on_demand":
        flags.append(f"--{request.provisioning}")
    if request.valid_until:
        if not re.fullmatch(r"([0-9]+[smhdw])+", request.valid_until):
            raise UserError(
                f"--valid_until={request.valid_until}: no duration; write one such as 90m or 6h"
            )
        flags.append(f"--valid-until-duration={request.valid_until}")
    for flag, value in (
        ("--service-account", request.service_account),
        ("--network", request.network),
        ("--subnetwork", request.subnetwork),
    ):
        if value:
            flags.append(f"{flag}={value}")
    if request.internal_ips:
        flags.append("--internal-ips")
    if request.startup_script:
        if not Path(request.startup_script).is_file():
            raise UserError(
                f"--startup_script={request.startup_script}: no such file; "
                "write one with `prts tpu run --write_startup_script=FILE`"
            )
        flags.append(f"--metadata-from-file=startup-script={request.startup_script}")
    return resource.arguments("create") + flags


def delete(resource: QueuedResource, without_asking: bool = False) -> list[str]:
    """Returns the gcloud arguments that delete a queued resource with its slices.

    `--force` also deletes suspended and failed requests, which keep their name otherwise.
    """
    return [*resource.arguments("delete"), "--force", *(["--quiet"] if without_asking else [])]


def _nodes(name: str, slices: int) -> list[str]:
    if slices < 1:
        raise UserError(f"--slices={slices}: at least one slice; give 1 or more")
    if slices == 1:
        return [f"--node-id={name}"]
    return [f"--node-count={slices}", f"--node-prefix={name}"]
