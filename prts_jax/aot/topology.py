"""TPU slices that the compiler knows, by name: `v5p:4x4x4`, `v5e:16x16`."""

import importlib
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from prts_jax.errors import UserError, first_line
from prts_jax.launch.accelerators import GENERATIONS, Generation

_BY_COMPILER = {g.compiler_name: g for g in GENERATIONS.values() if g.compiler_name}
_POD_EDGE = 16
"""Chips along an edge of a whole pod of v5e and v6e, whose links then close a ring."""


@dataclass(frozen=True)
class Topology:
    """Slices of one shape.

    Attributes:
      name: such as "v5e:4x4".
      generation: row of the table of TPUs.
      slices: number of slices, joined by the data-center network.
      devices: compile-only JAX devices of all slices.
    """

    name: str
    generation: Generation
    slices: int
    devices: tuple[Any, ...]

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return len(self.devices) // self.generation.devices_per_chip

    @property
    def hbm_bytes_per_device(self) -> int:
        """Memory of a device."""
        return self.generation.hbm_bytes // self.generation.devices_per_chip


def open_topology(name: str, slices: int = 1) -> Topology:
    """Asks the TPU compiler for a topology; needs no TPU.

    Args:
      name: GENERATION:SHAPE with the shape in chips, such as "v5e:16x16" or "v5p:4x4x4".
      slices: number of slices of this shape.

    Raises:
      UserError: an unknown name or shape, or the compiler is not installed.
    """
    match = re.fullmatch(r"([a-z0-9]+):([1-9]\d{0,4}(?:x[1-9]\d{0,4}){1,2})", name)
    known = ", ".join(_BY_COMPILER)
    if not match or match[1] not in _BY_COMPILER:
        raise UserError(
            f"--topology={name}: is not GENERATION:SHAPE; write one such as v5e:4x4 or v5p:4x4x4 "
            f"(generations: {known})"
        )
    if not 1 <= slices <= 1024:
        raise UserError(f"--slices={slices}: must be between 1 and 1024")
    shape = tuple(map(int, match[2].split("x")))
    generation = _BY_COMPILER[match[1]]
    edges = generation.machine.dimensions
    if len(shape) != edges:
        raise UserError(
            f"--topology={name}: slices of {match[1]} have {edges} edges; write one such as "
            f"{match[1]}:{'x'.join('4' * edges)}"
        )
    if math.prod(shape) > (_POD_EDGE**2 if edges == 2 else 16384):
        raise UserError(f"--topology={name}: no slice has {math.prod(shape)} chips")
    return Topology(name, generation, slices, _devices(name, match[1], shape, slices))


def _devices(name: str, generation: str, shape: tuple[int, ...], slices: int) -> tuple[Any, ...]:
    # Without these the compiler waits for a metadata server, or ends where a second process has it.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        importlib.import_module("libtpu")
    except ImportError:
        raise UserError(
            "prts aot: needs the TPU compiler, which needs no TPU: pip install 'prts_jax[tpu]'"
        ) from None
    from jax.experimental import topologies

    options: dict[str, Any] = {"wrap": _wrap(generation, shape)}
    if generation == "v4":
        options["chip_config_name"] = "megacore"  # one device per chip, as JAX has on real ones
    if slices > 1:
        options["num_slices"] = slices
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
        return tuple(topology.devices)
    except Exception as error:
        raise UserError(
            f"--topology={name}: the compiler has no such slice ({first_line(error)}); see Cloud "
            "TPU's list of topologies"
        ) from error


def _wrap(generation: str, shape: tuple[int, ...]) -> tuple[bool, ...]:
    """Returns for three dimensions whether links close a ring, as on real slices.

    v4, v5p and 7x: slices of whole cubes of 4×4×4 chips; v5e and v6e: edges of a whole pod.
    """
    if len(shape) == 3:
        return (all(size % 4 == 0 for size in shape),) * 3
    return (*(size == _POD_EDGE for size in shape), False)
