"""Settings of `prts tpu`: one TOML file, overridden by flags, and the slice that they ask for.

Example::

    project = "my-project"
    zone = "us-east5-a"
    name = "grown"
    bucket = "gs://my-bucket"
    accelerator = "v6e-256"
    provisioning = "spot"
    service_account = "trainer@my-project.iam.gserviceaccount.com"
"""

import dataclasses
import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prts_jax.errors import UserError
from prts_jax.launch import accelerators

BACKENDS = ("queued", "mig")
PROVISIONING = ("on_demand", "spot", "flex_start", "reserved", "guaranteed")
DEFAULT_FILE = "tpu.toml"

_FORMS = {
    "name": (
        r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?",
        "lower-case letters, digits and dashes, a letter first, at most 63; choose such a name",
    ),
    "zone": (r"[a-z]+-[a-z]+[0-9]+-[a-z0-9]+", "no zone; write one such as us-central2-b"),
    "project": (r"[a-z0-9.:-]*", "no project ID; `gcloud projects list`"),
    "bucket": (r"(gs://[a-z0-9][a-z0-9._-]{1,220}/?)?", "no bucket; write gs://BUCKET"),
    "valid_until": (r"([0-9]+[smhdw])*", "no duration; write one such as 90m or 6h"),
    "max_run": (r"([0-9]+[smhd])*", "no duration; write one such as 90m or 3d"),
    "backend": (f"({'|'.join(BACKENDS)})?", f"choose one of {', '.join(BACKENDS)}"),
    "provisioning": ("|".join(PROVISIONING), f"choose one of {', '.join(PROVISIONING)}"),
    "topology": (r"([0-9]+(x[0-9]+){1,2})?", "no topology; write one such as 4x4 or 4x4x8"),
}


def _setting(default: Any, text: str) -> Any:
    """Returns a field of `Settings` with the help of its flag."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class Settings:
    """The slices to rent, their zone and their user; each has its help.

    Raises:
      UserError: a value that gcloud would refuse, or read as a flag.
    """

    name: str = _setting("", "name of the run's slices and of their folder in the bucket")
    zone: str = _setting("", "such as us-central2-b")
    project: str = _setting("", "default: gcloud's setting")
    bucket: str = _setting("", "gs://BUCKET for code, logs, checkpoints and the state of babysit")
    accelerator: str = _setting(
        "", "GENERATION-SIZE in gcloud's notation: " + ", ".join(accelerators.GENERATIONS)
    )
    slices: int = _setting(1, "number of slices; more than one: multi-slice (default: 1)")
    backend: str = _setting(
        "", "queued (Cloud TPU API) or mig (Compute Engine); default: the generation's"
    )
    provisioning: str = _setting("on_demand", "one of " + ", ".join(PROVISIONING))
    reservation: str = _setting("", "name of the reservation, with --reserved")
    valid_until: str = _setting("", "longest wait for queued resources, such as 6h")
    max_run: str = _setting("", "longest run of --flex_start, 10m to 7d (default: 7d)")
    runtime_version: str = _setting("", "VM image of queued resources (default: the generation's)")
    machine_type: str = _setting("", "mig: machine type (default: the generation's)")
    topology: str = _setting(
        "", "mig: edges of a slice, such as 4x4x8 (default: from the number of chips)"
    )
    image_family: str = _setting(
        "", "mig: family in ubuntu-os-accelerator-images (default: the generation's)"
    )
    disk_gb: int = _setting(200, "mig: GB of each host's boot disk (default: 200)")
    service_account: str = _setting("", "identity of the hosts, which reads and writes the bucket")
    network: str = _setting("", "VPC network (default: the project's)")
    subnetwork: str = _setting("", "VPC subnetwork (default: the project's)")
    internal_ips: bool = _setting(False, "hosts without external addresses (ssh by IAP)")

    def __post_init__(self) -> None:
        """Checks each setting by itself."""
        for name in ("name", "zone"):
            if not getattr(self, name):
                raise UserError(f"--{name}: is missing; give the flag, or set it in {DEFAULT_FILE}")
        for name, (form, advice) in _FORMS.items():
            value = getattr(self, name)
            if not re.fullmatch(form, value):
                raise UserError(f"--{name}={value}: {advice}")
        for name in ("slices", "disk_gb"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name}={getattr(self, name)}: at least 1; give 1 or more")
        for name, value in dataclasses.asdict(self).items():
            if str(value).startswith("-"):
                raise UserError(f"--{name}={value}: begins with a dash; give a name")

    @property
    def region(self) -> str:
        """Region of the zone."""
        return self.zone.rpartition("-")[0]

    @property
    def folder(self) -> str:
        """The run's folder in the bucket, its default workdir.

        Raises:
          UserError: no bucket is set.
        """
        if not self.bucket:
            raise UserError("--bucket: is missing; give --bucket=gs://BUCKET, or --workdir")
        return f"{self.bucket.rstrip('/')}/{self.name}"


@dataclasses.dataclass(frozen=True)
class Slice:
    """Service, chips and hosts of one slice; "" where a service has no such setting."""

    backend: str
    chips: int
    hosts: int
    runtime_version: str
    machine_type: str
    topology: str
    image_family: str


def slice_of(settings: Settings) -> Slice:
    """Returns the slice that the settings ask for; a newer generation is passed through.

    Raises:
      UserError: an unknown accelerator type without the settings that describe its hosts, or a
        service that does not rent this generation.
    """
    prefix = settings.accelerator.partition("-")[0]
    if not settings.accelerator:
        raise UserError("--accelerator_type: is missing; write one such as v5litepod-16")
    newer = prefix not in accelerators.GENERATIONS and prefix not in accelerators.ALIASES
    if newer and settings.machine_type and settings.topology:
        chips = math.prod(map(int, settings.topology.split("x")))
        per_host = re.search(r"-([1-9][0-9]*)t(-|$)", settings.machine_type)
        hosts = max(1, chips // int(per_host[1] if per_host else 4))
        return Slice(
            settings.backend or "mig",
            chips,
            hosts,
            settings.runtime_version,
            settings.machine_type,
            settings.topology,
            settings.image_family or accelerators.GENERATIONS["tpu7x"].machine.image_family,
        )
    if newer and re.fullmatch(r"[a-z0-9]+-[1-9][0-9]*", settings.accelerator):
        known = ", ".join(accelerators.GENERATIONS)
        raise UserError(
            f"--accelerator_type={settings.accelerator}: {prefix!r} is none of {known}; for a "
            "newer generation give --machine_type and --topology as well"
        )
    return _known_slice(settings, accelerators.parse(settings.accelerator))


def _known_slice(settings: Settings, accelerator: accelerators.Accelerator) -> Slice:
    machine = accelerator.generation.machine
    backend = settings.backend or machine.backend
    runtime = settings.runtime_version or machine.runtime_version
    if backend == "queued" and not runtime:
        raise UserError(
            f"--backend=queued: queued resources do not serve {accelerator.name}; leave it out"
        )
    machine_type = settings.machine_type
    if backend == "mig" and not machine_type:
        if not machine.machine_type:
            raise UserError(
                f"--backend=mig: Compute Engine does not serve {accelerator.name}; leave it out"
            )
        machine_type = f"{machine.machine_type}{accelerator.chips_of_host}t"
    topology = settings.topology or accelerator.topology
    if backend == "mig" and not topology:
        raise UserError(
            f"--accelerator_type={accelerator.name}: {accelerator.chips} chips have no standard "
            "topology; give --topology"
        )
    if topology and math.prod(map(int, topology.split("x"))) != accelerator.chips:
        raise UserError(
            f"--topology={topology}: is not {accelerator.chips} chips, as {accelerator.name} has; "
            "change one of them"
        )
    image = settings.image_family or machine.image_family
    return Slice(
        backend, accelerator.chips, accelerator.hosts, runtime, machine_type, topology, image
    )


def read(path: str, flags: Mapping[str, Any]) -> Settings:
    """Returns the settings of a TOML file, by default `DEFAULT_FILE` where it exists, and of flags.

    A flag that is given, not None, overrides the file.

    Raises:
      UserError: the file is missing or broken, or a setting is unknown, of another type or invalid.
    """
    file = Path(path or DEFAULT_FILE)
    values: dict[str, Any] = {}
    if path or file.is_file():
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--settings={file}: {error.strerror}; check the path") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{file}: not TOML ({error}); correct it") from error
    types = {field.name: type(field.default) for field in dataclasses.fields(Settings)}
    for name, value in values.items():
        if name not in types:
            near = difflib.get_close_matches(name, types, 1)
            advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(types)}"
            raise UserError(f"{file}: no setting {name!r}; {advice}")
        if type(value) is not types[name]:
            raise UserError(f"{file}: {name} = {value!r} is no {types[name].__name__}; change it")
    return Settings(**values | {name: v for name, v in flags.items() if v is not None})
