"""Cloud TPU generations and accelerator types such as `v5litepod-16`.

Source: Cloud TPU documentation, "TPU versions" and "TPU software versions".
"""

import difflib
import math
import re
from dataclasses import dataclass

from prts_jax.errors import UserError


@dataclass(frozen=True)
class Machine:
    """Hosts of a generation and the Google Cloud service that rents them.

    Source: Cloud TPU documentation, "TPU machine types", "TPU OS images", "TPU instances in MIGs".

    Attributes:
      backend: `queued` (queued resources of the Cloud TPU API) or `mig` (managed instance groups of
        Compute Engine, with a workload policy).
      chips_per_host: chips of a host of a slice with several hosts.
      most_chips_of_one: largest slice that is one host.
      dimensions: edges of a topology, 2 or 3.
      runtime_version: VM image of queued resources; "" where they do not serve the generation.
      machine_type: of Compute Engine, without the number of chips; "" where it does not serve it.
      image_family: VM image of Compute Engine, in the project ubuntu-os-accelerator-images.
    """

    backend: str
    chips_per_host: int
    most_chips_of_one: int
    dimensions: int
    runtime_version: str = ""
    machine_type: str = ""
    image_family: str = ""


@dataclass(frozen=True)
class Generation:
    """One generation of TPUs.

    Attributes:
      prefix: the part of an accelerator type before the dash.
      cores_per_chip: 2 if the number after the dash counts cores, 1 if it counts chips.
      compiler_name: the generation's name for the TPU compiler; "" where it is too old.
      device_kinds: prefixes of `jax.Device.device_kind`.
      devices_per_chip: JAX devices of one chip.
      peak_flops: bfloat16 FLOP/s of a chip.
      clock_hz: cycles per second of a core, 0.0 where it is not published.
    """

    prefix: str
    cores_per_chip: int
    compiler_name: str
    device_kinds: tuple[str, ...]
    devices_per_chip: int
    peak_flops: float
    hbm_bytes: int
    clock_hz: float
    machine: Machine


_GIB = 2**30
_BASE = "tpu-ubuntu2204-base"
_IMAGE = "ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e"
_OLD = Machine("queued", 4, 4, 2, _BASE)
_V4 = Machine("queued", 4, 4, 3, _BASE)
_V5E = Machine("queued", 4, 8, 2, "v2-alpha-tpuv5-lite")
_V5P = Machine("mig", 4, 4, 3, "v2-alpha-tpuv5", "ct5p-hightpu-", _IMAGE)
_V6E = Machine("mig", 4, 8, 2, "v2-alpha-tpuv6e", "ct6e-standard-", _IMAGE)
_V7X = Machine("mig", 4, 4, 3, "", "tpu7x-standard-", "ubuntu-accel-2404-amd64-tpu-tpu7x")

GENERATIONS = {
    row[0]: Generation(*row)
    for row in (
        ("v2", 2, "", ("TPU v2",), 2, 45e12, 16 * _GIB, 0.7e9, _OLD),
        ("v3", 2, "", ("TPU v3",), 2, 123e12, 32 * _GIB, 0.94e9, _OLD),
        ("v4", 2, "v4", ("TPU v4",), 1, 275e12, 32 * _GIB, 1.05e9, _V4),
        ("v5litepod", 1, "v5e", ("TPU v5 lite",), 1, 197e12, 16 * _GIB, 1.5e9, _V5E),
        ("v5p", 2, "v5p", ("TPU v5p", "TPU v5"), 1, 459e12, 95 * _GIB, 1.75e9, _V5P),
        ("v6e", 1, "v6e", ("TPU v6 lite",), 1, 918e12, 32 * _GIB, 1.75e9, _V6E),
        ("tpu7x", 2, "tpu7x", ("TPU7x",), 2, 2307e12, 192 * _GIB, 0.0, _V7X),
    )
}

PEAK_FLOPS_PER_DEVICE = {
    kind: generation.peak_flops / generation.devices_per_chip
    for generation in GENERATIONS.values()
    for kind in generation.device_kinds
} | {"NVIDIA A100": 312e12, "NVIDIA H100": 989e12, "NVIDIA H200": 989e12}
"""Prefix of a `jax.Device`'s `device_kind` → its dense bfloat16 FLOP/s, by the vendors' data
sheets."""

ALIASES = {"v5e": "v5litepod", "v5lite": "v5litepod", "v7x": "tpu7x", "7x": "tpu7x"}
"""Common name → gcloud's name."""

CHIPS_OF_SMALL_SLICES = (1, 4, 8, 16, 32, 64, 128, 256)
"""Sizes of v5e and v6e, which are 2-D slices of a pod of 256 chips."""


@dataclass(frozen=True)
class Accelerator:
    """A slice's type: its name for gcloud, its generation and its number of chips."""

    name: str
    generation: Generation
    chips: int

    @property
    def chips_of_host(self) -> int:
        """Chips of each host."""
        machine = self.generation.machine
        return self.chips if self.chips <= machine.most_chips_of_one else machine.chips_per_host

    @property
    def hosts(self) -> int:
        """Hosts of a slice."""
        return self.chips // self.chips_of_host

    @property
    def topology(self) -> str:
        """Edges of the slice as "4x4x8": powers of two, as close to a square or cube as they go.

        "" where the number of chips is no power of two.
        """
        if self.chips & (self.chips - 1):
            return ""
        dimensions = self.generation.machine.dimensions
        doublings, rest = divmod(int(math.log2(self.chips)), dimensions)
        edges = [2 ** (doublings + (i >= dimensions - rest)) for i in range(dimensions)]
        # A single host of the 3-D generations is 2x2x1.
        return "x".join(map(str, sorted(edges, reverse=self.chips < 8 and dimensions == 3)))


def parse(name: str, flag: str = "--accelerator_type") -> Accelerator:
    """Parses an accelerator type; messages name the command-line flag.

    >>> parse("v5p-128").chips
    64

    Raises:
      UserError: the name is not GENERATION-SIZE, or generation or size do not exist.
    """
    where = f"{flag}={name}"
    match = re.fullmatch(r"([a-z0-9]+)-([1-9][0-9]*)", name)
    if match is None:
        raise UserError(f"{where}: not GENERATION-SIZE; write one such as v5litepod-16 or v5p-128")
    prefix, size = match[1], int(match[2])
    if prefix in ALIASES:
        raise UserError(
            f"{where}: gcloud names this generation {ALIASES[prefix]}; "
            f"write {flag}={ALIASES[prefix]}-{size}"
        )
    if prefix not in GENERATIONS:
        close = difflib.get_close_matches(prefix, [*GENERATIONS, *ALIASES], n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(GENERATIONS)}"
        raise UserError(f"{where}: {prefix!r} is unknown; {hint}")
    generation = GENERATIONS[prefix]
    if generation.cores_per_chip == 1 and size not in CHIPS_OF_SMALL_SLICES:
        sizes = ", ".join(map(str, CHIPS_OF_SMALL_SLICES))
        raise UserError(f"{where}: {prefix} slices have {sizes} chips; choose one of these")
    if generation.cores_per_chip == 2 and size % 8:
        raise UserError(
            f"{where}: {prefix} sizes count cores, 8 on each host; choose a multiple of 8"
        )
    return Accelerator(name, generation, size // generation.cores_per_chip)
