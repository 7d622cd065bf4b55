"""Counts and bytes of collectives, from programs as compilers print them."""

import pytest

from tfx.lab import collectives
from tfx.lab.collectives import Collective, Traffic

PROGRAM = """HloModule step, num_partitions=8

%body (p: (s32[], f32[4])) -> (s32[], f32[4]) {{
  %x = f32[4]{{0}} get-tuple-element(%p), index=1
  ROOT %r = f32[4]{{0}} all-reduce(%x), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%add
}}

%condition (p: (s32[], f32[4])) -> pred[] {{
  %limit = s32[]{{:T(128)}} constant(6)
  %p = (s32[], f32[4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %less = pred[] compare(%i, %limit), direction=LT
}}

ENTRY %main (a: f32[4]) -> f32[4] {{
  %w = (s32[], f32[4]{{0}}) while(%t), condition=%condition, body=%body{trips}
  ROOT %y = f32[4]{{0}} get-tuple-element(%w), index=1
}}
"""


@pytest.mark.parametrize(
    "trips, times",
    [
        ("", 6),
        (', backend_config={"known_trip_count":{"n":"9"},"known_init_step":{"init":"0"}}', 9),
    ],
)
def test_a_loop_multiplies(trips, times):
    read = collectives.read(PROGRAM.format(trips=trips))
    assert read == Traffic((Collective("all-reduce", times, 16 * times, 24 * times),), 0)


def test_a_loop_of_unknown_length_counts_once_and_says_so():
    program = PROGRAM.format(trips="").replace("ROOT %less = pred[] compare", "%l = pred[] and")
    assert collectives.read(program) == Traffic((Collective("all-reduce", 1, 16, 24),), 1)


def entry(*lines):
    return "\n".join(
        ["HloModule m, num_partitions=8", "", "ENTRY %main (a: f32[4]) -> f32[4] {"]
    ) + ("\n" + "\n".join(f"  {line}" for line in lines) + "\n}\n")


@pytest.mark.parametrize(
    "line, kind, whole, sent",
    [
        ("%x = f32[2,8]{1,0} all-reduce(%a), replica_groups={}", "all-reduce", 64, 112),
        ("%x = bf16[16]{0} all-gather(%a), replica_groups={{0,1},{2,3}}", "all-gather", 32, 16),
        ("%x = f32[2]{0} reduce-scatter(%a), replica_groups=[2,4]<=[8]", "reduce-scatter", 32, 24),
        ("%x = f32[8]{0} all-to-all(%a), replica_groups=[1,8]<=[8]", "all-to-all", 32, 28),
        ("%x = f32[8]{0} collective-permute(%a)", "collective-permute", 32, 32),
        (
            "%x = (f32[8]{0:T(8,128)S(1)}, f32[8]{0}, u32[]{:S(2)}, u32[]) "
            "collective-permute-start(%a), channel_id=3",
            "collective-permute",
            32,
            32,
        ),
        (
            "%x = (f32[2]{0}, f32[8]{0}) all-gather-start(%a), replica_groups=[2,4]<=[8]",
            "all-gather",
            32,
            24,
        ),
        (
            "%x = (f32[], /*index=1*/pred[4]{0}) all-reduce(%a, %b), "
            "replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}",
            "all-reduce",
            8,
            8,
        ),
        (
            "%x = f32[8]{0} all-reduce(%a), replica_groups=mesh['a'=4,'b'=2] {'a':(1)2,'b'}",
            "all-reduce",
            32,
            48,
        ),
    ],
)
def test_bytes_of_every_kind(line, kind, whole, sent):
    assert collectives.read(entry(line)).collectives == (Collective(kind, 1, whole, sent),)


def test_a_group_of_one_says_nothing():
    line = "%x = f32[8]{0} all-reduce(%a), replica_groups=[8,1]<=[8]"
    assert collectives.read(entry(line)).collectives == ()


def test_a_collective_that_is_spread_over_fusions_is_one():
    fused = "%f{0} (p: f32[2]) -> f32[8] {{\n  %g = f32[8]{{0}} all-gather(%p), channel_id=7, "
    fused += "replica_groups=[2,4]<=[8]\n}}\n\n"
    calls = [f"%x{i} = f32[8]{{0}} fusion(%a), kind=kCustom, calls=%f{i}" for i in range(3)]
    program = "".join(map(fused.format, range(3))) + entry(*calls)
    assert collectives.read(program).collectives == (Collective("all-gather", 1, 32, 24),)
