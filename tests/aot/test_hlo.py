"""Reading compiled programs: numbers counted by hand in a program of a few lines."""

import re

import pytest

from prts_jax.aot import hlo
from prts_jax.aot.estimate import phase

TEXT = """
HloModule jit_step, is_scheduled=true

%body (arg: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %arg = (s32[]{:T(128)}, bf16[4,8]{1,0:T(8,128)}) parameter(0)
  %counter = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %two = s32[]{:T(128)} constant(2)
  %x = bf16[4,8]{1,0} get-tuple-element(%arg), index=1
  %gather = bf16[16,8]{1,0} all-gather(%x), channel_id=5, replica_groups=[2,4]<=[8], dimensions={0}
  %fusion.1 = bf16[4,8]{1,0} fusion(%gather), calls=%inner, op_name="jvp(D)/mul", CYCLES("100")
  %next = s32[]{:T(128)} add(%counter, %two)
  ROOT %out = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%next, %fusion.1)
}

%inner (p: bf16[16,8]) -> bf16[4,8] {
  %p = bf16[16,8]{1,0} parameter(0)
  %part = bf16[16,8]{1,0} all-gather(%p), channel_id=6, replica_groups={{0,4},{1,5}}
  ROOT %slice = bf16[4,8]{1,0} slice(%part), slice={[0:4], [0:8]}
}

%condition (arg: (s32[], bf16[4,8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %arg = (s32[]{:T(128)}, bf16[4,8]{1,0}) parameter(0)
  %now = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %less = pred[]{:T(512)} compare(%now, %limit), direction=LT
}

%taken (p1: f32[2,2]) -> f32[2,2] {
  %p1 = f32[2,2]{1,0} parameter(0)
  ROOT %update = f32[2,2]{1,0} fusion(%p1), calls=%none, CYCLES("7")
}

%kept (p2: f32[2,2]) -> f32[2,2] {
  ROOT %p2 = f32[2,2]{1,0} parameter(0)
}

ENTRY %main (p0: f32[2,2]) -> f32[2,2] {
  %p0 = f32[2,2]{1,0} parameter(0)
  %start = (s32[]{:T(128)}, bf16[4,8]{1,0}) tuple(%p0, %p0)
  %while.1 = (s32[]{:T(128)}, bf16[4,8]{1,0}) while(%start), condition=%condition, body=%body
  %index = s32[]{:T(128)} constant(0)
  ROOT %c = f32[2,2]{1,0} conditional(%index, %p0, %p0), branch_computations={%kept, %taken}
}
"""


def by_name() -> dict[str, hlo.Executed]:
    text = re.sub(r'CYCLES\("(\d+)"\)', r'backend_config={"estimated_cycles":"\1"}', TEXT)
    entries = hlo.executed(hlo.parse(text))
    return {entry.instruction.name: entry for entry in entries}


def test_cycles_of_a_loop_count_once_a_trip_and_those_of_a_branch_once() -> None:
    entries = by_name().values()
    assert sum(entry.instruction.cycles * entry.times for entry in entries) == 12 * 100 + 7


def test_collectives_inside_of_fusions_are_hidden_and_others_are_not() -> None:
    entries = by_name()
    assert (entries["gather"].times, entries["gather"].hidden) == (12, False)
    assert (entries["part"].times, entries["part"].hidden) == (12, True)
    assert entries["gather"].instruction.bytes == 16 * 8 * 2


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("tensor",)),
        ("replica_groups=[4,2]<=[8]", ("tensor",)),
        ("replica_groups=[2,4]<=[8]", ("fsdp", "tensor")),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", ("data", "fsdp")),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}", ("fsdp",)),
        ("replica_groups=mesh['a'=8] {'a'}", ("data", "fsdp", "tensor")),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ("fsdp", "tensor")),
        ("source_target_pairs={{0,2},{1,3}}", ("fsdp",)),
        ("source_target_pairs={{0,0},{1,3},{2,1}}", ("fsdp",)),
    ],
)
def test_groups_of_devices_name_the_mesh_axes(groups: str, axes: tuple[str, ...]) -> None:
    collective = hlo.Instruction("x", "f32[2]", "all-reduce", f"%y), {groups}, to_apply=%add")
    assert hlo.mesh_axes(collective, {"data": 2, "fsdp": 2, "tensor": 2}) == axes


def test_what_slices_exchange_counts_once_and_beside_computation() -> None:
    attributes = '_xla_megascale_target="{1,2}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"'
    text = "\n".join(
        [
            "ENTRY %main (p: bf16[2,8,128]) -> bf16[2,8,128] {",
            f"  %send.1 = (bf16[2,8,128]{{2,1,0}}, u32[], token[]) send(%p, %t), {attributes}",
            f"  %recv.1 = (bf16[2,8,128]{{2,1,0}}, u32[], token[]) recv(%t), {attributes}",
            "}",
        ]
    )
    (received,) = (e for e in hlo.executed(hlo.parse(text)) if hlo.collective_kind(e.instruction))
    assert hlo.collective_kind(received.instruction) == "all-reduce"
    assert hlo.mesh_axes(received.instruction, {"data": 2, "fsdp": 4}) == ("slices",)
    assert (received.instruction.bytes, received.hidden) == (2 * 8 * 128 * 2, True)


def test_parts_of_one_collective_share_their_channel() -> None:
    assert hlo.channel(by_name()["gather"].instruction) == "5"


@pytest.mark.parametrize(
    ("op_name", "expected"),
    [
        ("jit(train_step)/jvp(Decoder)/while/body/mlp/dot_general", "forward"),
        ("jit(train_step)/transpose(jvp(Decoder))/while/body/mlp/dot_general", "backward"),
        (
            "jit(train_step)/transpose(jvp(Decoder))/checkpoint/rematted_computation/mlp",
            "recomputation",
        ),
        ("jit(train_step)/mul", "optimizer"),
    ],
)
def test_phases_follow_the_names_that_jax_gives(op_name: str, expected: str) -> None:
    assert phase(op_name) == expected
