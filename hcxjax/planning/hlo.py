"""Reads the text of an optimised XLA program: its instructions, and how often each one runs.

A scan is a loop whose body stands in the text once, so a plain count of the text, as XLA's own cost analysis is,
misses all layers but one. Here every computation has the number of times that one update runs it.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import NamedTuple

_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
"""Types whose width their name does not say."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's type, such as 'bf16', and sizes."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Their number."""
        return math.prod(self.dims)

    @property
    def size(self) -> float:
        """Bytes, without padding."""
        width = re.match(r"[a-z]+(\d+)", self.dtype)
        bits = _BITS.get(self.dtype, int(width[1]) if width else 0)
        return self.elements * bits / 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      shapes: of its result; several of a tuple.
      attributes: what follows the operands, as written.
      literal: what stands in the parentheses of a constant or a parameter.
    """

    name: str
    shapes: tuple[Shape, ...]
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    literal: str = ""
    root: bool = False

    def named(self, attribute: str) -> str | None:
        """The computation that an attribute such as `body=%NAME` names; None where there is none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found and found[1]

    def value(self, attribute: str) -> str | None:
        """What stands in the braces of `attribute={...}`, braces within included; None where there is none."""
        start = re.search(rf"\b{attribute}={{", self.attributes)
        return None if start is None else _enclosed(self.attributes, start.end() - 1)[1:-1]

    @property
    def source(self) -> str:
        """Where it comes from in the traced function (`op_name`); '' where XLA does not say."""
        found = re.search(r'op_name="([^"]*)"', self.attributes)
        return found[1] if found else ""


Computation = Mapping[str, Instruction]
"""Instructions by name, in their order."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
      computations: by name.
      entry: the name of the one that is run.
    """

    computations: Mapping[str, Computation]
    entry: str

    @classmethod
    def parse(cls, text: str) -> "Program":
        """From `compiled.as_text()`. ValueError where it holds no program."""
        computations: dict[str, dict[str, Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            if head := re.match(r"(ENTRY )?%?([\w.\-]+) (\(.*)?.*{$", line):
                current = computations.setdefault(head[2], {})
                entry = head[2] if head[1] else entry
            elif current is not None and (instruction := _instruction(line)):
                current[instruction.name] = instruction
        if not entry:
            raise ValueError("the text is no compiled program: it has no ENTRY computation")
        return cls(computations, entry)

    def root(self, computation: str) -> Instruction:
        """What the computation returns."""
        return next(one for one in self.computations[computation].values() if one.root)

    def executed(self) -> "Executed":
        """Every instruction that runs, with how often."""
        counts: dict[str, float] = {}
        endless: list[str] = []
        self._count(self.entry, 1.0, counts, endless)
        runs = tuple(
            Run(one, times, self.computations[name])
            for name, times in counts.items()
            for one in self.computations[name].values()
        )
        return Executed(runs, tuple(endless), tuple(name for name in self.computations if name not in counts))

    def _count(self, name: str, times: float, counts: dict[str, float], endless: list[str]) -> None:
        counts[name] = counts.get(name, 0.0) + times
        for one in self.computations[name].values():
            trips = 1.0
            if one.opcode == "while":
                known = self.trips(name, one)
                if known is None:
                    endless.append(one.name)
                trips = float(known or 1)
            for called in _called(one):
                if called in self.computations:
                    self._count(called, times * trips, counts, endless)

    def trips(self, computation: str, loop: Instruction) -> int | None:
        """How often a loop of `computation` runs its body; None where the text does not say.

        XLA may write it down. Else the loop counts: from a constant, by a constant, while less than a constant.
        """
        if told := re.search(r'known_trip_count["\':{\s]+n["\':\s]+(\d+)', loop.attributes):
            return int(told[1])
        body, condition = loop.named("body") or "", loop.named("condition") or ""
        if body not in self.computations or condition not in self.computations:
            return None
        test = self.root(condition)
        if test.opcode != "compare" or "direction=LT" not in test.attributes:
            return None
        index = self._element(condition, test.operands[0])
        limit = self._constant(condition, test.operands[1])
        if index is None or limit is None:
            return None
        start = self._constant(computation, self._part(computation, loop.operands[0], index))
        step = self._step(body, index)
        return None if start is None or not step else max(0, -(-(limit - start) // step))

    def stacked(self, turns: int) -> list[tuple[Instruction, Shape]]:
        """(loop, array) of what loops of so many turns lay down slice by slice: what a scan gives out.

        Of a layer scan and its transpose, these are the activations that forward keeps for backward, and the gradients.
        """
        found = []
        for name, computation in self.computations.items():
            for one in computation.values():
                body = one.named("body")
                if one.opcode != "while" or not body or self.trips(name, one) != turns:
                    continue
                for index, shape in enumerate(one.shapes):
                    made = self._element(body, self._part(body, self.root(body).name, index)) != index
                    if made and shape.dims[:1] == (turns,) and len(shape.dims) > 1:
                        found.append((one, shape))
        return found

    def _step(self, body: str, index: int) -> int | None:
        """By how much one turn of a loop raises element `index` of what it carries."""
        total, name = 0, self._part(body, self.root(body).name, index)
        while (one := self._behind(body, name)) is not None and one.opcode == "add":
            amounts = [self._constant(body, operand) for operand in one.operands]
            if amounts.count(None) != 1:
                return None
            total += sum(amount for amount in amounts if amount is not None)
            name = one.operands[amounts.index(None)]
        return total if self._element(body, name) == index else None

    def _part(self, computation: str, name: str, index: int) -> str:
        """The operand that is element `index` of a tuple; '' where the tuple is not made in sight."""
        one = self._behind(computation, name)
        return one.operands[index] if one is not None and one.opcode == "tuple" else ""

    def _behind(self, computation: str, name: str) -> Instruction | None:
        """What an instruction copies; itself where it is no copy."""
        one = self.computations[computation].get(name)
        while one is not None and one.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start"):
            one = self.computations[computation].get(one.operands[0])
        return one

    def _constant(self, computation: str, name: str) -> int | None:
        one = self._behind(computation, name)
        number = one is not None and one.opcode == "constant" and re.fullmatch(r"-?\d+", one.literal)
        return int(one.literal) if one is not None and number else None

    def _element(self, computation: str, name: str) -> int | None:
        """Which element of the computation's parameter an instruction is."""
        one = self._behind(computation, name)
        found = one is not None and one.opcode == "get-tuple-element" and re.search(r"index=(\d+)", one.attributes)
        return int(found[1]) if found else None


class Run(NamedTuple):
    """An instruction, how often it runs, and the computation that it stands in."""

    instruction: Instruction
    times: float
    computation: Computation

    def operand(self, number: int) -> Shape:
        """The shape of an operand that is an array."""
        return self.computation[self.instruction.operands[number]].shapes[0]


class Executed(NamedTuple):
    """What one run of a program runs.

    Attributes:
      endless: names of loops of which the text does not say how often they turn; their bodies are counted once.
      unreached: computations that nothing seen runs; functions that reductions apply to elements are among them.
    """

    runs: tuple[Run, ...]
    endless: tuple[str, ...]
    unreached: tuple[str, ...]


def _called(one: Instruction) -> list[str]:
    """Computations that an instruction runs. Those of reductions and sorts, which are run per element, are left out."""
    if one.opcode in ("fusion", "call", "map", "async-start", "call-start"):
        names = [one.named("calls"), one.named("to_apply")]
    elif one.opcode == "while":
        names = [one.named("body"), one.named("condition")]
    elif one.opcode == "conditional":
        branches = re.findall(r"[\w.\-]+", one.value("branch_computations") or "")
        names = [*branches, one.named("true_computation"), one.named("false_computation")]
    else:
        return []
    return [name for name in names if name]


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    shape = _enclosed(rest, 0) if rest[0] == "(" else rest[: rest.index(" ")]
    opcode, parenthesis, _ = rest[len(shape) :].lstrip().partition("(")
    if not parenthesis:
        return None
    start = rest.index(opcode + "(", len(shape)) + len(opcode)
    inside = _enclosed(rest, start)
    literal = inside[1:-1] if opcode in ("constant", "parameter") else ""
    operands = () if literal else tuple(re.findall(r"%([\w.\-]+)", inside))
    attributes = rest[start + len(inside) :]
    return Instruction(head[2], _shapes(shape), opcode, operands, attributes, literal, bool(head[1]))


def _shapes(text: str) -> tuple[Shape, ...]:
    """Of an array or of a tuple's leaves; layouts and comments are left out."""
    plain = re.sub(r"{[^}]*}|/\*.*?\*/", "", text)
    return tuple(
        Shape(dtype, tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size))
        for dtype, sizes in re.findall(r"(\w+)\[([\d,<=]*)\]", plain)
    )


_BRACKETS = {"(": ")", "{": "}"}


def _enclosed(text: str, start: int) -> str:
    """From the bracket at `start` to the one that closes it."""
    opening, depth = text[start], 0
    for at in range(start, len(text)):
        depth += (text[at] == opening) - (text[at] == _BRACKETS[opening])
        if depth == 0:
            return text[start : at + 1]
    raise ValueError(f"a bracket is not closed: {text[start : start + 60]!r}")
