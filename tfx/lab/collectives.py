"""What do the devices of a compiled program say to each other? Read from its HLO text.

A collective in a loop runs as often as the loop's body: the count comes from the loop's
`known_trip_count` or, where a compiler left none, from the constant that its counter, which
starts at 0, is compared with.
"""

import math
import re
from collections import defaultdict
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


class Collective(NamedTuple):
    """All collectives of one kind, in one run of the program.

    Attributes:
      bytes: of the arrays as they are when whole: the sum, what was gathered, what is scattered.
      sent: bytes that one device sends for them, by the algorithms that move the least: around
        a ring of n devices 2 (n-1)/n of the array for an all-reduce, (n-1)/n for the others;
        once for a permutation.
    """

    kind: str
    count: int
    bytes: int
    sent: int


class Traffic(NamedTuple):
    """Attributes:
    unknown: how many collectives are in loops of unknown length, and so were counted once.
    """

    collectives: tuple[Collective, ...]
    unknown: int


HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?[\w.\-]+ = (.*?)\s([a-z][a-z\-]*)\((.*)")
CALLED = re.compile(
    r"(calls|to_apply|body|true_computation|false_computation|branch_computations)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
ARRAY = re.compile(r"\b(pred|[a-z]+\d\w*)\[([\d,]*)\]")


def read(hlo: str) -> Traffic:
    """The collectives of `compiled.as_text()`, by kind."""
    computations, entry = _computations(hlo)
    callers, fused = defaultdict(list), set()  # callee: (caller, times, whether that is known)
    for name, lines in computations.items():
        for _, opcode, rest in lines:
            if opcode.endswith(("-done", "-update")):
                continue  # the second half of an -start
            times = _trips(rest, computations) if opcode == "while" else 1
            for _, called in CALLED.findall(rest):
                for callee in re.findall(r"[\w.\-]+", called):
                    callers[callee].append((name, times or 1, times is not None))
                    fused |= {callee} if opcode == "fusion" else set()

    known: dict[str, tuple[int, bool]] = {entry: (1, True)}

    def runs(name: str) -> tuple[int, bool]:
        if name not in known:
            above = [(runs(caller), times, sure) for caller, times, sure in callers[name]]
            count = sum(caller[0] * times for caller, times, _ in above)
            known[name] = count, all(caller[1] and sure for caller, _, sure in above)
        return known[name]

    devices = math.prod(int(n) for n in re.findall(r"(?:num_partitions|replica_count)=(\d+)", hlo))
    found, spread, unknown = defaultdict(lambda: [0, 0, 0]), {}, 0
    for name, lines in computations.items():
        for result, opcode, rest in lines:
            kind, size = opcode.removesuffix("-start"), _group(rest, devices)
            if kind not in KINDS or size == 1 or not runs(name)[0]:
                continue
            times, sure = runs(name)
            array, sent = _bytes(kind, opcode, result, size)
            unknown += not sure
            channel = re.search(r"channel_id=(\d+)", rest)
            if name in fused and channel:
                # An asynchronous collective is spread over several fusions, its first and last
                # part outside a loop that it overlaps with.
                least = min(times, spread.get((kind, channel[1]), (times,))[0])
                spread[kind, channel[1]] = least, array, sent
                continue
            _add(found[kind], times, array, sent)
    for (kind, _), part in spread.items():
        _add(found[kind], *part)
    return Traffic(tuple(Collective(k, *found[k]) for k in KINDS if k in found), unknown)


def _add(total: list[int], times: int, array: int, sent: int) -> None:
    total[:] = total[0] + times, total[1] + times * array, total[2] + times * sent


def _computations(hlo: str) -> tuple[dict[str, list[tuple[str, str, str]]], str]:
    """(result, opcode, the rest) of every instruction, by computation; the entry's name."""
    computations, entry, here = {}, "", []
    for line in hlo.splitlines():
        if head := HEAD.match(line):
            here = computations[head[2]] = []
            entry = head[2] if head[1] else entry
        elif found := INSTRUCTION.match(line):
            here.append(found.groups())
    return computations, entry


def _trips(rest: str, computations) -> int | None:
    if known := re.search(r'known_trip_count"?:\{"?n"?:"?(\d+)', rest):
        return int(known[1])
    condition = computations[re.search(r"condition=%?([\w.\-]+)", rest)[1]]
    limits = [r for _, opcode, r in condition if opcode == "constant"]
    alone = {opcode for _, opcode, _ in condition} <= _COUNTS
    less = any("direction=LT" in r for _, _, r in condition)
    return int(limits[0].split(")")[0]) if alone and less and len(limits) == 1 else None


_COUNTS = {"parameter", "get-tuple-element", "constant", "compare"}


def _group(rest: str, devices: int) -> int:
    """Of how many devices each of the groups is that talk to each other."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", rest):
        return int(found[1])
    if found := re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", rest):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2])
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", rest):
        return found[1].count(",") + 1
    return devices


def _bytes(kind: str, opcode: str, result: str, size: int) -> tuple[int, int]:
    """Of the whole array, and what a device sends."""
    arrays = [(t, shape) for t, shape in ARRAY.findall(result) if shape or t != "u32"]
    bits = lambda t: 8 if t == "pred" else int(re.search(r"\d+", t)[0])
    count = lambda shape: math.prod(map(int, filter(None, shape.split(","))))
    total = sum(bits(t) * count(shape) for t, shape in arrays) // 8
    if kind == "collective-permute":
        total //= 2 if opcode.endswith("-start") else 1  # the operand is shown as well
        return total, total
    if opcode == "all-gather-start":
        total = total * size // (size + 1)
    if kind == "reduce-scatter":
        total *= size
    return total, total * (size - 1) // size * (2 if kind == "all-reduce" else 1)
