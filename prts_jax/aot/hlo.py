"""Reads the text of a program that XLA compiled for TPUs: cycles, loops and collectives.

The compiler leaves its estimate in the field `estimated_cycles` of an instruction. It has none for
Pallas kernels and for the time that a collective keeps a core waiting.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2}
_BYTES |= {"f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8}
_BYTES |= {"f8e4m3fn": 1, "f8e5m2": 1}

_ORDER = r"\[([\d,]+)\](?:T\(([\d,]+)\))?"

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
)


@dataclass(frozen=True)
class Instruction:
    """One instruction of a computation.

    Attributes:
      name: unique in the program.
      shape: its type as text, a tuple's in parentheses.
      opcode: "fusion", "while", "all-gather-start", …
      rest: operands and attributes as text.
    """

    name: str
    shape: str
    opcode: str
    rest: str

    @property
    def cycles(self) -> int:
        """The compiler's estimate for one execution; 0 where it has none."""
        estimate = re.search(r'"estimated_cycles":"(\d+)"', self.rest)
        return int(estimate[1]) if estimate else 0

    @property
    def op_name(self) -> str:
        """The path of the JAX operation; "" where XLA made the instruction."""
        named = re.search(r'op_name="([^"]*)"', self.rest)
        return named[1] if named else ""

    @property
    def bytes(self) -> int:
        """Bytes of the result, of all parts of a tuple; of what is received from a slice."""
        return _bytes(self.shape.partition("}")[0] if self.opcode == "recv" else self.shape)

    def called(self) -> list[str]:
        """Returns the computations that a call runs; of a conditional, the last, for true."""
        if self.opcode == "conditional":
            branches = re.search(r"branch_computations=\{([^}]*)\}", self.rest)
            last = branches[1].split("%")[-1] if branches else self.attribute("true_computation")
            return [last]
        return [*filter(None, map(self.attribute, ("to_apply", "calls")))]

    def attribute(self, name: str) -> str:
        """Returns the computation that the attribute `name` refers to; "" without one."""
        reference = re.search(rf"\b{name}=%([\w.-]+)", self.rest)
        return reference[1] if reference else ""


Program = Mapping[str, list[Instruction]]
"""Computation → instructions; the entry computation is "ENTRY"."""


@dataclass(frozen=True)
class Executed:
    """An instruction with the number of its executions in one call of the program.

    Attributes:
      instruction: the instruction.
      times: product of the trip counts of the loops around it.
      hidden: whether it runs beside other work, as part of an asynchronous operation.
    """

    instruction: Instruction
    times: int
    hidden: bool


def parse(text: str) -> Program:
    """Reads the text of `jax.stages.Compiled.as_text()`."""
    program: dict[str, list[Instruction]] = {}
    instructions: list[Instruction] = []
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%([\w.-]+) .*\{$", line)
        if header and not line.startswith(" "):
            instructions = []
            program["ENTRY" if header[1] else header[2]] = instructions
        elif instruction := _instruction(line):
            instructions.append(instruction)
    return program


def _instruction(line: str) -> Instruction | None:
    start = re.match(r"\s+(?:ROOT )?%([\w.-]+) = ", line)
    if start is None:
        return None
    rest = line[start.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    return Instruction(start[1], shape, opcode, rest)


def _closing(text: str) -> int:
    """Returns the index of the parenthesis that closes the first one."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if not depth:
            return index
    return len(text)


def _bytes(shape: str) -> int:
    total = 0.0
    for dtype, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
        total += _BYTES.get(dtype, 0) * math.prod(int(n) for n in sizes.split(",") if n)
    return int(total)


def executed(program: Program, computation: str = "ENTRY", times: int = 1) -> Iterator[Executed]:
    """Yields every instruction that runs, with the number of its executions.

    A fusion is one instruction, and so is what it computes; collectives inside of fusions are
    yielded as well, since asynchronous ones are split between several fusions.
    """
    for instruction in program[computation]:
        # Slices exchange data through their hosts while the device computes.
        hidden = "async" in instruction.opcode + computation or instruction.opcode == "recv"
        yield Executed(instruction, times, hidden)
        if instruction.opcode == "while":
            body = instruction.attribute("body")
            trips = _trips(program, instruction.attribute("condition"), body)
            yield from executed(program, body, times * trips)
        elif instruction.opcode in ("call", "conditional", "async-start"):
            for called in instruction.called():
                yield from executed(program, called, times)
        elif instruction.opcode == "fusion":
            for inner in program.get(instruction.attribute("calls"), ()):
                if collective_kind(inner):
                    yield Executed(inner, times, hidden=True)


def _trips(program: Program, condition: str, body: str) -> int:
    """Returns the trip count of a loop that counts from 0 to a constant limit."""
    limits = [i for i in program[condition] if i.opcode == "constant" and i.shape.startswith("s32")]
    limit = max((int(i.rest.partition(")")[0]) for i in limits), default=1)
    constants = {
        i.name: int(i.rest.partition(")")[0])
        for i in program[body]
        if i.opcode == "constant" and re.match(r"s32\[\]", i.shape)
    }
    counters = {
        i.name
        for i in program[body]
        if i.opcode == "get-tuple-element" and re.search(r"index=0\b", i.rest)
    }
    for i in program[body]:
        operands = re.findall(r"%([\w.-]+)", i.rest.partition(")")[0])
        if i.opcode == "add" and len(operands) == 2 and operands[0] in counters:
            step = constants.get(operands[1], 1)
            return max(1, limit // max(step, 1))
    return max(1, limit)


def collective_kind(instruction: Instruction) -> str:
    """Returns the kind of a collective, such as "all-gather"; "" for other instructions."""
    kind = instruction.opcode.removesuffix("-start")
    between_slices = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)
    if kind == "recv" and between_slices:
        kind = between_slices[1].lower().replace("_", "-")
    return kind if kind in COLLECTIVES else ""


def channel(instruction: Instruction) -> str:
    """Returns the id that the parts of one split collective share; its name without an id."""
    identifier = re.search(r"channel_id=(\d+)", instruction.rest)
    return identifier[1] if identifier else instruction.name


def mesh_axes(instruction: Instruction, mesh: Mapping[str, int]) -> tuple[str, ...]:
    """Returns the mesh axes over which a collective exchanges data.

    Args:
      instruction: a collective; "slices" stands for the network between slices.
      mesh: axis → size, in the order of the program's devices.
    """
    if "_xla_megascale_target" in instruction.rest:
        return ("slices",)
    group = _first_group(instruction.rest, math.prod(mesh.values()))
    where = np.array(np.unravel_index(group, tuple(mesh.values())))
    return tuple(axis for axis, at in zip(mesh, where, strict=True) if len(set(at.tolist())) > 1)


def _first_group(rest: str, devices: int) -> list[int]:
    """Returns the devices of the first replica group, in any of XLA's notations.

    Of pairs it is the first of two devices: some send to themselves.
    """
    if permuted := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", rest):
        pairs = [list(map(int, pair)) for pair in re.findall(r"(\d+),(\d+)", permuted[1])]
        return next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return [int(device) for device in listed[1].split(",")]
    if iota := re.search(rf"replica_groups=\[(\d+),(\d+)\]<={_ORDER}", rest):
        return _devices(iota[3], iota[4]).reshape(int(iota[1]), int(iota[2]))[0].tolist()
    if named := re.search(rf"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\({_ORDER}\))?", rest):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
        over = re.match(r"\s*\{([^}]*)\}", rest[named.end() :])
        chosen = re.findall(r"'(\w+)'", over[1]) if over else list(axes)
        grid = _devices(named[2] or str(devices), named[3]).reshape(tuple(axes.values()))
        index = tuple(slice(None) if name in chosen else 0 for name in axes)
        return grid[index].reshape(-1).tolist()
    return list(range(devices))


def _devices(sizes: str, order: str | None) -> np.ndarray:
    """Returns the ids of all devices, counted in an array of `sizes` whose axes are exchanged."""
    shape = [int(n) for n in sizes.split(",")]
    devices = np.arange(math.prod(shape)).reshape(shape)
    return devices.transpose([int(n) for n in order.split(",")]) if order else devices
