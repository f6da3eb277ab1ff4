"""What chips send each other in a compiled program, by the axes of the mesh that it goes along."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from hcxjax.planning.hlo import Executed, Instruction, Run

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "collective-permute", "all-to-all", "send")
"""As XLA calls them; a `send` goes to the same chip of other slices, through the data centre's network."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective of a program.

    Attributes:
      kind: of `KINDS`.
      axes: the mesh axes along which its groups reach; empty where a group is one device.
      whole: do the groups reach along these axes from end to end?
      payload: bytes on a chip of what is gathered (the result), scattered (the input), reduced or sent.
      sent: bytes that a chip puts on wires, at best: a ring's (n-1)/n of the payload, twice that where it is
        reduced and kept whole.
      times: how often an update runs it.
      dtype: of the largest array.
      source: where in the traced function it comes from.
      slices: that its groups reach over. A compiled collective of TPUs stays within one: what goes between slices is a
        `send` of its own.
    """

    kind: str
    axes: tuple[str, ...]
    whole: bool
    payload: float
    sent: float
    times: float
    dtype: str
    source: str
    slices: int = 1

    @property
    def total(self) -> float:
        """Bytes that a chip sends in an update."""
        return self.sent * self.times


def collectives(
    executed: Executed, mesh: Mapping[str, int], across: Mapping[str, int], one_program: bool = False
) -> tuple[Collective, ...]:
    """Those of a program that was compiled for a mesh.

    Args:
      mesh: axis → size, in the mesh's order.
      across: axis → over how many slices, or nodes, it reaches.
      one_program: XLA numbers the devices of all slices in one go, as it does those of GPUs' nodes. Else device i of a
        slice is the i-th of the part of the mesh within it, the last axis counting fastest.
    Raises:
      ValueError: groups are written in a form that is not known.
    """
    if not one_program:
        mesh = {axis: size // across.get(axis, 1) for axis, size in mesh.items()}
    found = []
    for run in executed.runs:
        one, times, _ = run
        kind = one.opcode.removesuffix("-start")
        if kind == "send" and "megascale" in one.attributes:
            found.append(_between_slices(one, times, across))
        if kind not in KINDS or kind == "send" or _goes_on(run):
            continue
        largest = max(one.shapes, key=lambda shape: shape.size)
        groups = _pairs(one) if kind == "collective-permute" else _groups(one, math.prod(mesh.values()))
        axes, whole = _axes(groups, mesh, ring=kind == "collective-permute")
        payload = _payload(kind, one)
        sent = payload * ring_share(kind, groups.shape[1])
        slices = math.prod(across[axis] for axis in axes) if one_program else 1
        found.append(Collective(kind, axes, whole, payload, sent, times, largest.dtype, one.source, slices))
    return tuple(found)


def _goes_on(run: Run) -> bool:
    """Is it a later part of one that is counted where it starts?

    On TPUs one that runs beside other work stands in the fusion that starts it, in each that goes on beside it, and in
    the one that ends it.
    """
    one = run.instruction
    starts = (other for other in run.computation.values() if "AsyncCollectiveStart" in other.attributes)
    return "chain_id=" in one.attributes and not any(one.name in start.operands for start in starts)


def _between_slices(one: Instruction, times: float, across: Mapping[str, int]) -> Collective:
    """What the runtime of several slices carries for a chip: a sum over the slices, or a copy to another."""
    slices, payload = math.prod(across.values()), one.shapes[0].size
    kind = "all-reduce" if "megascale_reduce_operation" in one.attributes else "collective-permute"
    axes = tuple(axis for axis, size in across.items() if size > 1)
    sent = payload * ring_share(kind, slices)
    return Collective("send", axes, True, payload, sent, times, one.shapes[0].dtype, one.source)


def ring_share(kind: str, members: int) -> float:
    """Bytes a chip sends for each byte of payload, in a ring: Thakur et al. 2005, doi:10.1177/1094342005051521."""
    if kind == "collective-permute":
        return 1.0
    return (members - 1) / members * (2 if kind == "all-reduce" else 1)


def _payload(kind: str, one: Instruction) -> float:
    """Bytes; what starts a collective has its operands among the results, and of gathers and scatters counts the
    larger side."""
    sizes = [shape.size for shape in one.shapes]
    if one.opcode == "collective-permute-start":
        return sizes[0]
    if kind == "reduce-scatter":
        members = _groups(one, 0).shape[1]
        return sum(sizes) * members if not one.opcode.endswith("-start") else sum(sizes) * members / (members + 1)
    if one.opcode == "all-gather-start":
        return sum(sizes[len(one.operands) :]) if len(sizes) == 2 * len(one.operands) else max(sizes)
    return sum(sizes)


def _pairs(one: Instruction) -> np.ndarray:
    """[pair, (source, target)]."""
    numbers = re.findall(r"\d+", one.value("source_target_pairs") or "")
    return np.array(numbers, int).reshape(-1, 2)


def _groups(one: Instruction, devices: int) -> np.ndarray:
    """[group, member] of device numbers, in any of the forms in which XLA writes `replica_groups`."""
    text = one.attributes.partition("replica_groups=")[2]
    if iota := re.match(r"\[([\d,]+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", text):
        return _iota(iota[2]).reshape(_numbers(iota[1]))
    if text.startswith("mesh["):
        return _mesh_groups(text)
    if one.value("replica_groups") == "":
        return np.arange(devices).reshape(1, -1)
    if text.startswith("{{"):
        return np.array([_numbers(group) for group in re.findall(r"{([\d,]+)}", one.value("replica_groups") or "")])
    raise ValueError(f"replica groups of {one.name} are in a form that is not known: {text[:120]}")


def _mesh_groups(text: str) -> np.ndarray:
    """`mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}`: groups along the named axes of a mesh that XLA made up."""
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", text[: text.index("]")])}
    order = re.match(r"mesh\[[^\]]*\], device_ids=\((.*?)\) {", text)
    named = re.search(r"{([^}]*)}", text[text.index("]") :])
    assert named is not None
    ids = np.arange(math.prod(sizes.values()))
    if order is not None:
        ids = _iota(order[1]) if "[" in order[1] else np.array(_numbers(order[1]))
    shape, chosen = [], []
    parts = {name: part for name, *part in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named[1])}
    for name, size in sizes.items():
        if name not in parts:
            shape.append(size)
        elif not parts[name][0]:
            chosen.append(len(shape))
            shape.append(size)
        else:  # a part of an axis, after `before` of it
            before, part = (int(number) for number in parts[name])
            chosen.append(len(shape) + 1)
            shape += [before, part, size // before // part]
    members = math.prod(shape[at] for at in chosen)
    others = [at for at in range(len(shape)) if at not in chosen]
    return ids.reshape(shape).transpose(*others, *chosen).reshape(-1, members)


def _iota(text: str) -> np.ndarray:
    """`[4,16]T(1,0)`: 0, 1, 2, ... in that shape, transposed, flat."""
    dims, _, order = text.partition("]")
    ids = np.arange(math.prod(_numbers(dims))).reshape(_numbers(dims))
    return (ids.transpose(_numbers(order)) if order else ids).reshape(-1)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _axes(groups: np.ndarray, mesh: Mapping[str, int], ring: bool) -> tuple[tuple[str, ...], bool]:
    """(axes along which members of a group differ, do they span all of these axes?)."""
    places = np.stack(np.unravel_index(groups, tuple(mesh.values())), axis=-1)
    differs = (places != places[:, :1]).any(axis=(0, 1))
    axes = tuple(axis for axis, some in zip(mesh, differs, strict=True) if some)
    return axes, ring or groups.shape[1] == math.prod(mesh[axis] for axis in axes)
