"""What a compiled program does on one device, read from its HLO text: collectives, traffic, the compiler's cycles.

XLA's own ``cost_analysis`` counts the body of a loop once, whatever the number of its turns; with scanned blocks that
is a fraction of the work.  Here every instruction counts as often as its loop turns.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

_BYTES = {
    "pred": 1, "s2": 0.25, "u2": 0.25, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "f4e2m1fn": 0.5, "f8e3m4": 1,
    "f8e4m3": 1, "f8e4m3fn": 1, "f8e4m3fnuz": 1, "f8e4m3b11fnuz": 1, "f8e5m2": 1, "f8e5m2fnuz": 1, "f8e8m0fnu": 1,
    "bf16": 2, "f16": 2, "s16": 2,
    "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8, "c64": 8, "c128": 16,
}  # fmt: skip
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_NO_TRAFFIC = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all",
    "partition-id", "replica-id", "iota", "opt-barrier", "optimization-barrier",
}  # fmt: skip

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPCODE = re.compile(r"([a-z][a-z0-9\-]*)\(")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|called_computations|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_WRAPPER = re.compile(
    r".*\(.*|while|body|cond|closed_call|checkpoint|rematted_computation|[A-Z]\w*(\.\w+)?|block_\d+"
)
_KERNEL = re.compile(r'custom_call_target="(tpu_custom_call|__gpu\$xla\.gpu\.triton)"')
_STARTS, _CHAINED = '"AsyncCollectiveStart"', "chain_id="
_SCATTERED = re.compile(r"all-reduce-scatter(\.[\w.]+)?")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


class Instruction(NamedTuple):
    """One line: name = shape opcode(operands), attributes."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str


@dataclass(frozen=True)
class Collective:
    """Collectives of one kind between groups of one size, on one device and in one execution.

    payload: bytes of their operands.  sent: bytes a device sends if they run around a ring.

    A TPU's fusion ``all-reduce-scatter``, an all-reduce of which every device keeps its slice, is a reduce-scatter.
    One that runs beside products, piece by piece in several fusions, counts where it starts.  Of a conditional all
    branches count.
    """

    kind: str
    group: int
    count: int
    payload: int
    sent: int


@dataclass(frozen=True)
class Hotspot:
    """Instructions that come from one operation of one module, blocks and passes together."""

    where: str
    cycles: int
    traffic: int


@dataclass(frozen=True)
class Program:
    """traffic: bytes read from and written to main memory (HBM), estimated from operands and results.

    kernel_traffic: the part of it that is custom kernels' (Pallas), whose cycles the compiler does not estimate.

    cycles: the TPU compiler's own estimate for its instructions, 0 on other backends.  unknown_loops: loops whose
    number of turns is not in the text; their bodies count once.  hotspots: the largest by cycles, then traffic.
    """

    collectives: tuple[Collective, ...]
    traffic: int
    cycles: int
    unknown_loops: int
    hotspots: tuple[Hotspot, ...] = ()
    kernel_traffic: int = 0


def analyse(text: str, hotspots: int = 8) -> Program:
    """Compiled HLO text -> Program, of one device and one execution, with so many hotspots."""
    entry, computations = _parse(text)
    times, unknown = _executions(entry, computations)
    partitions = int(found[1]) if (found := re.search(r"num_partitions=(\d+)", text)) else 1
    sums: dict[tuple[str, int], list[float]] = defaultdict(lambda: [0, 0, 0])
    places: dict[str, list[float]] = defaultdict(lambda: [0, 0])
    kernel_traffic = 0.0
    starting = {name for name, inside in computations.items() if any(_STARTS in i.attributes for i in inside)}
    for name, (turns, fused) in times.items():
        shapes = {i.name: i.shape for i in computations[name]}
        for instruction in computations[name]:
            kind = _collective(instruction, name)
            if kind in _COLLECTIVES and not (_CHAINED in instruction.attributes and name not in starting):
                group = _group_size(instruction, partitions)
                payload = sum(size(shapes.get(o, "")) for o in instruction.operands)
                total = sums[kind, group]
                total[0] += turns
                total[1] += turns * payload
                total[2] += turns * _ring(kind, group, payload)
            if not fused:
                place = places[_where(instruction)]
                place[0] += turns * sum(int(n) for n in _CYCLES.findall(instruction.attributes))
                traffic = turns * _traffic(instruction, shapes, computations)
                place[1] += traffic
                kernel_traffic += traffic * bool(_KERNEL.search(instruction.attributes))
    collectives = tuple(
        Collective(kind, group, *(round(number) for number in numbers))
        for (kind, group), numbers in sorted(sums.items())
        if group > 1
    )
    cycles, traffic = (round(sum(place[i] for place in places.values())) for i in (0, 1))
    largest = sorted(places, key=lambda where: places[where], reverse=True)[:hotspots]
    hot = tuple(Hotspot(where, *map(round, places[where])) for where in largest)
    return Program(collectives, traffic, cycles, unknown, hot, round(kernel_traffic))


def size(shape: str, main_memory_only: bool = False) -> float:
    """Bytes of a shape in HLO's notation, tuples included; on TPU "S(1)" and above mark memory on the chip."""
    total = 0.0
    for kind, dimensions, layout in _ARRAY.findall(shape):
        if kind in _BYTES and not (main_memory_only and re.search(r"S\([1-9]", layout)):
            total += _BYTES[kind] * math.prod(int(n) for n in dimensions.split(",") if n)
    return total


def _parse(text: str) -> tuple[str, dict[str, list[Instruction]]]:
    entry, current, computations = "", "", {}
    for line in text.splitlines():
        if not line.startswith(" "):
            if found := _COMPUTATION.match(line):
                current = found[2]
                computations[current] = []
                entry = current if found[1] else entry
            continue
        if current and (found := _INSTRUCTION.match(line)):
            computations[current].append(_instruction(found[1], found[2]))
    return entry, computations


def _instruction(name: str, rest: str) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else 0  # the shape may be a tuple
    opcode = _OPCODE.search(rest, end)
    if opcode is None:
        return Instruction(name, rest, "", (), "")
    close = _closing(rest, opcode.end() - 1)
    operands = tuple(re.findall(r"%([\w.\-]+)", rest[opcode.end() : close]))
    if opcode[1] in ("constant", "parameter"):
        operands = (rest[opcode.end() : close],)
    return Instruction(name, rest[: opcode.start()], opcode[1], operands, rest[close + 1 :])


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    return len(text)


def _executions(
    entry: str, computations: dict[str, list[Instruction]]
) -> tuple[dict[str, tuple[int, bool]], int]:
    """{computation: (how often it runs, whether as the inside of a fusion)}, and the number of unknown loops."""
    times: dict[str, tuple[int, bool]] = {}
    unknown = 0

    def visit(name: str, turns: int, fused: bool) -> None:
        nonlocal unknown
        before = times.get(name, (0, fused))
        times[name] = (before[0] + turns, fused and before[1])
        for instruction in computations.get(name, ()):
            if instruction.opcode in ("async-update", "async-done"):  # of what counted where it started
                continue
            called = [c for group in _CALLED.findall(instruction.attributes) for c in _names(group)]
            inside, repeated = turns, fused or instruction.opcode not in ("while", "conditional", "call")
            if instruction.opcode == "while":
                count = _turns(instruction, computations)
                unknown += count is None
                inside = turns * (count or 1)
            for other in called:
                if other in computations:
                    visit(other, inside, repeated)

    visit(entry, 1, False)
    return times, unknown


def _names(group: str) -> list[str]:
    return re.findall(r"%([\w.\-]+)", group)


def _turns(loop: Instruction, computations: dict[str, list[Instruction]]) -> int | None:
    """Turns of a loop: as the compiler says, or the one whole number its condition compares the counter with."""
    if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(found[1])
    condition = re.search(r"condition=%([\w.\-]+)", loop.attributes)
    if condition is None:
        return None
    constants = set(_constants(condition[1], computations))
    return constants.pop() if len(constants) == 1 else None


def _constants(name: str, computations: dict[str, list[Instruction]]) -> Iterator[int]:
    for instruction in computations.get(name, ()):
        if instruction.opcode == "constant" and re.match(r"[su]\d+\[\]", instruction.shape):
            yield int(instruction.operands[0])
        for group in _CALLED.findall(instruction.attributes):
            for other in _names(group):
                yield from _constants(other, computations)


def _where(instruction: Instruction) -> str:
    """Module and operation an instruction comes from: "image_encoder/blocks/attn/dot_general (backward)"."""
    found = _OP_NAME.search(instruction.attributes)
    if found is None:
        return "no operation of the model"
    words = [word for word in found[1].split(";")[0].split("/") if not _WRAPPER.fullmatch(word)]
    path = "/".join(re.sub(r"^(\w+)_\d+$", r"\1", word) for word in words)
    again = "rematted_computation" in found[1]
    return path + (" (again)" if again else " (backward)" if "transpose(" in found[1] else "")


def _group_size(instruction: Instruction, partitions: int) -> int:
    """Devices per group in any of HLO's notations, all of them where none is recognised; 1: nothing is exchanged."""
    text = instruction.attributes
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(.*?\)\))? \{([^}]*)\}", text):
        sizes = dict(re.findall(r"('[^']+')=(\d+)", found[1]))
        parts = re.findall(r"('[^']+')(?::\(\d+\)(\d+))?", found[2])  # 'axis':(1)2 is a part of an axis
        return math.prod(int(part or sizes[axis]) for axis, part in parts)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", text):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return found[1].count(",") + 1
    if found := re.search(r"source_target_pairs=\{(.*?)\}\}", text):
        pairs = re.findall(r"(\d+),(\d+)", found[1])
        return 2 if any(a != b for a, b in pairs) else 1
    return partitions


def _collective(instruction: Instruction, computation: str) -> str:
    """Its kind, "all-reduce" for example; of instructions that are no collective, any other name."""
    kind = instruction.opcode.removesuffix("-start")
    return "reduce-scatter" if kind == "all-reduce" and _SCATTERED.fullmatch(computation) else kind


def _ring(kind: str, group: int, payload: float) -> float:
    """Bytes a device sends: bandwidth-optimal rings (Chan et al. 2007, section 3)."""
    match kind:
        case "all-reduce":
            return 2 * payload * (group - 1) / group
        case "all-gather":
            return payload * (group - 1)
        case "reduce-scatter" | "all-to-all":
            return payload * (group - 1) / group
        case _:
            return payload


def _traffic(
    instruction: Instruction, shapes: dict[str, str], computations: dict[str, list[Instruction]]
) -> float:
    """Bytes to and from main memory: results and operands; of an array that is only sliced, the slices."""
    opcode = instruction.opcode
    if opcode in _NO_TRAFFIC or opcode.endswith("-done") or not opcode:
        return 0
    result = size(instruction.shape, True)
    if opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * result
    if opcode in ("dynamic-update-slice", "scatter"):
        return 2 * size(shapes.get(instruction.operands[-1 if opcode == "scatter" else 1], ""), True)
    operands = [size(shapes.get(name, ""), True) for name in instruction.operands]
    if opcode != "fusion":
        return result / (2 if opcode.endswith("-start") else 1) + sum(operands)
    inside = next((computations[c] for g in _CALLED.findall(instruction.attributes) for c in _names(g)), [])
    for i in range(len(operands)):
        operands[i] = min(operands[i], _read(inside, i))
    return min(result, _written(inside, result)) + sum(operands)


def _read(inside: list[Instruction], index: int) -> float:
    """Bytes of parameter ``index`` that a fusion reads: slices, if it is only sliced or updated in place."""
    name = next((i.name for i in inside if i.opcode == "parameter" and i.operands == (str(index),)), None)
    users = [i for i in inside if name in i.operands and i.opcode != "parameter"]
    total = 0.0
    shapes = {i.name: i.shape for i in inside}
    for user in users:
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == name:
            total += size(user.shape)
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
            total += size(shapes[user.operands[1]])
        elif user.opcode == "fusion":
            total += size(user.shape)  # a nested fusion that slices gives the slice
        else:
            return math.inf
    return total


def _written(inside: list[Instruction], result: float) -> float:
    """Bytes a fusion writes: the update, if its last step updates an array in place."""
    if inside and inside[-1].opcode == "dynamic-update-slice":
        shapes = {i.name: i.shape for i in inside}
        return size(shapes[inside[-1].operands[1]])
    return result
