"""Memory, time and collectives of a compiled program, as the TPU compiler states them."""

import math
import re
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from prts_jax.aot import hlo
from prts_jax.aot.topology import Topology
from prts_jax.compilation import compile_lowered
from prts_jax.errors import first_line

PHASES = ("forward", "recomputation", "backward", "optimizer")

GIB = 2**30


@dataclass(frozen=True)
class Collective:
    """Data exchanged in one call by collectives of one kind over the same mesh axes.

    Attributes:
      kind: such as "all-gather".
      axes: mesh axes, joined by "+".
      bytes: of the results on one device.
      count: executions.
      overlapped_bytes: part of `bytes` that is exchanged beside computation.
    """

    kind: str
    axes: str
    bytes: int
    count: int
    overlapped_bytes: int


@dataclass(frozen=True)
class Estimate:
    """The compiler's statement about one program on one device.

    Attributes:
      fits: whether the program fits the device's memory.
      reason: the compiler's reason where it does not; else "".
      hbm_bytes: kind of memory → bytes; "total" is what the program needs at its peak.
      compile_seconds: wall time of the compilation.
      seconds: phase → estimated seconds of a call; {} where the clock is unknown.
      dearest: (seconds, executions, operation) of the ten operations that take longest.
      collectives: what is exchanged.
      kernels: name of a Pallas kernel → executions; their time is not in `seconds`.
    """

    fits: bool
    reason: str
    hbm_bytes: Mapping[str, int]
    compile_seconds: float
    seconds: Mapping[str, float] = field(default_factory=dict)
    dearest: tuple[tuple[float, int, str], ...] = ()
    collectives: tuple[Collective, ...] = ()
    kernels: Mapping[str, int] = field(default_factory=dict)

    @property
    def estimated_seconds(self) -> float | None:
        """Seconds of a call without Pallas kernels and exposed communication; None: unknown."""
        return sum(self.seconds.values()) if self.seconds else None


def bytes_per_device(tree: Any) -> int:
    """Returns the bytes of abstract arrays with shardings on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def estimate(
    lowered: jax.stages.Lowered,
    topology: Topology,
    mesh: Mapping[str, int],
    arguments: Mapping[str, Any],
    flags: Mapping[str, str],
) -> Estimate:
    """Compiles a lowered program for a topology and reads what the compiler says of it.

    Args:
      lowered: program for the topology's devices.
      topology: the slices.
      mesh: mesh axis → size.
      arguments: kind of memory → abstract arrays that the program takes ("parameters": …).
      flags: options of the compiler, by name.

    Raises:
      Exception: the compiler refuses for a reason other than memory.
    """
    held = {kind: bytes_per_device(tree) for kind, tree in arguments.items()}
    began = time.perf_counter()
    try:
        compiled, text = _compiled(lowered, flags)
    except Exception as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        needed = re.search(r"total memory required \(([\d.]+)([GM])\)", str(error))
        total = float(needed[1]) * (GIB if needed[2] == "G" else 2**20) if needed else 0.0
        reason = first_line(error, most=400)
        return Estimate(False, reason, held | {"total": int(total)}, time.perf_counter() - began)
    took = time.perf_counter() - began
    memory: Any = compiled.memory_analysis()
    outputs = memory.output_size_in_bytes - memory.alias_size_in_bytes
    kinds = held | {
        "outputs": outputs,
        "activations": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    # The compiler pads small arguments; "total" counts what it allocates.
    kinds["total"] = memory.argument_size_in_bytes + sum(
        kinds[k] for k in ("outputs", "activations", "code")
    )
    program = hlo.parse(text)
    clock = topology.generation.clock_hz
    return Estimate(True, "", kinds, took, **_read(program, mesh, clock))


def _compiled(
    lowered: jax.stages.Lowered, flags: Mapping[str, str]
) -> tuple[jax.stages.Compiled, str]:
    """Returns the compiled program and its text.

    JAX cannot print some programs with SparseCores, as on v5p; the compiler's own dump has them.
    """
    with tempfile.TemporaryDirectory() as folder:
        compiled = compile_lowered(lowered, {**flags, "xla_dump_to": folder})
        dumps = Path(folder).glob("*.after_codegen.txt")
        return compiled, max(dumps, key=lambda dump: dump.stat().st_size).read_text()


def _read(program: hlo.Program, mesh: Mapping[str, int], clock_hz: float) -> dict[str, Any]:
    phases, operations, kernels = Counter[str](), Counter[tuple[str, int]](), Counter[str]()
    seen: set[tuple[str, str]] = set()
    exchanged: dict[tuple[str, str], list[int]] = {}
    for entry in hlo.executed(program):
        one, cycles = entry.instruction, entry.instruction.cycles * entry.times
        phases[phase(one.op_name)] += cycles
        operations[f"{phase(one.op_name)}: {short_name(one)}", entry.times] += cycles
        if "tpu_custom_call" in one.rest:
            kernels[re.sub(r"\.\d+$", "", one.name)] += entry.times
        kind = hlo.collective_kind(one)
        if kind and (kind, hlo.channel(one)) not in seen:
            seen.add((kind, hlo.channel(one)))
            axes = "+".join(hlo.mesh_axes(one, mesh)) or "none"
            sums = exchanged.setdefault((kind, axes), [0, 0, 0])
            sums[0] += one.bytes * entry.times
            sums[1] += entry.times
            sums[2] += one.bytes * entry.times * entry.hidden
    return {
        "seconds": {p: phases[p] / clock_hz for p in PHASES} if clock_hz else {},
        "dearest": tuple(
            (cycles / (clock_hz or 1.0), times, name)
            for (name, times), cycles in operations.most_common(10)
        ),
        "collectives": tuple(
            Collective(kind, axes, *sums) for (kind, axes), sums in sorted(exchanged.items())
        ),
        "kernels": dict(kernels),
    }


def phase(op_name: str) -> str:
    """Returns the phase of a train step that an operation of JAX belongs to."""
    if "rematted_computation" in op_name:
        return "recomputation"
    if "transpose(" in op_name:
        return "backward"
    return "forward" if "jvp(" in op_name else "optimizer"


def short_name(instruction: hlo.Instruction) -> str:
    """Returns the last parts of the path of an instruction's JAX operation, or its own name."""
    parts = instruction.op_name.split("/")
    return "/".join(parts[-3:]) if len(parts) > 1 else instruction.name
