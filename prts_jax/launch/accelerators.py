"""Cloud TPU generations and accelerator types such as `v5litepod-16`.

Source: Cloud TPU documentation, "TPU versions" and "TPU software versions".
"""

import re
from dataclasses import dataclass

from prts_jax.errors import UserError


@dataclass(frozen=True)
class Generation:
    """One generation of TPUs.

    Attributes:
      prefix: the part of an accelerator type before the dash.
      cores_per_chip: 2 if the number after the dash counts cores, 1 if it counts chips.
      runtime_version: the VM image of queued resources; "" where there is none.
      compiler_name: the generation's name for the TPU compiler; "" where it is too old.
      device_kinds: prefixes of `jax.Device.device_kind`.
      devices_per_chip: JAX devices of one chip.
      peak_flops: bfloat16 FLOP/s of a chip.
      hbm_bytes: memory of a chip.
      clock_hz: cycles per second of a core, 0.0 where it is not published.
    """

    prefix: str
    cores_per_chip: int
    runtime_version: str
    compiler_name: str
    device_kinds: tuple[str, ...]
    devices_per_chip: int
    peak_flops: float
    hbm_bytes: int
    clock_hz: float


_GIB = 2**30
GENERATIONS = {
    generation.prefix: generation
    for generation in (
        Generation("v2", 2, "tpu-ubuntu2204-base", "", ("TPU v2",), 2, 45e12, 16 * _GIB, 0.7e9),
        Generation("v3", 2, "tpu-ubuntu2204-base", "", ("TPU v3",), 2, 123e12, 32 * _GIB, 0.94e9),
        Generation("v4", 2, "tpu-ubuntu2204-base", "v4", ("TPU v4",), 1, 275e12, 32 * _GIB, 1.05e9),
        Generation(
            "v5litepod",
            1,
            "v2-alpha-tpuv5-lite",
            "v5e",
            ("TPU v5 lite",),
            1,
            197e12,
            16 * _GIB,
            1.5e9,
        ),
        Generation(
            "v5p", 2, "v2-alpha-tpuv5", "v5p", ("TPU v5p", "TPU v5"), 1, 459e12, 95 * _GIB, 1.75e9
        ),
        Generation(
            "v6e", 1, "v2-alpha-tpuv6e", "v6e", ("TPU v6 lite",), 1, 918e12, 32 * _GIB, 1.75e9
        ),
        Generation("tpu7x", 2, "", "tpu7x", ("TPU7x",), 2, 2307e12, 192 * _GIB, 0.0),
    )
}


ALIASES = {"v5e": "v5litepod", "v5lite": "v5litepod"}
"""Common name → gcloud's name."""

CHIPS_OF_SMALL_SLICES = (1, 4, 8, 16, 32, 64, 128, 256)
"""Sizes of v5e and v6e, which are 2-D slices of a pod of 256 chips."""


@dataclass(frozen=True)
class Accelerator:
    """A slice's type: its name for gcloud, its generation and its number of chips."""

    name: str
    generation: Generation
    chips: int


def parse(name: str, flag: str = "--accelerator_type") -> Accelerator:
    """Parses an accelerator type.

    >>> parse("v5p-128").chips
    64

    Args:
      name: the accelerator type.
      flag: its command-line flag, for messages.

    Raises:
      UserError: the name is not GENERATION-SIZE, or generation or size do not exist.
    """
    where = f"{flag}={name}"
    match = re.fullmatch(r"([a-z0-9]+)-([1-9][0-9]*)", name)
    known = ", ".join(GENERATIONS)
    if match is None:
        raise UserError(f"{where}: not GENERATION-SIZE; write one such as v5litepod-16 or v5p-128")
    prefix, size = match[1], int(match[2])
    if prefix in ALIASES:
        raise UserError(
            f"{where}: gcloud names this generation {ALIASES[prefix]}; "
            f"write {flag}={ALIASES[prefix]}-{size}"
        )
    if prefix not in GENERATIONS:
        raise UserError(f"{where}: unknown generation {prefix!r}; choose one of {known}")
    generation = GENERATIONS[prefix]
    if generation.cores_per_chip == 1 and size not in CHIPS_OF_SMALL_SLICES:
        sizes = ", ".join(map(str, CHIPS_OF_SMALL_SLICES))
        raise UserError(f"{where}: {prefix} slices have {sizes} chips; choose one of these")
    if generation.cores_per_chip == 2 and size % 8:
        raise UserError(
            f"{where}: {prefix} sizes count cores, 8 on each host; choose a multiple of 8"
        )
    return Accelerator(name, generation, size // generation.cores_per_chip)
