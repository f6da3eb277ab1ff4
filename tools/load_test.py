"""Tries a running server with many clients at once, good and bad ones, and checks every answer.

python -m tools.serve --model runs/quickstart &
python -m tools.load_test --model quickstart --clients 200 --seconds 120

First every request is asked alone; afterwards each answer must be the one that its request got then. At the end nothing
may wait or run, and the server's memory must be back. The exit status says whether all of that held.
"""

import argparse
import asyncio
import collections
import dataclasses
import os
import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.load_clients import Answer, Case, Clients, Exchange, Outcome, Target, Wrong, cases

_CASES = 30
_MIX = {
    "plain": 30,
    "stream": 30,
    "slow reader": 12,
    "leaves a stream": 10,
    "leaves a plain": 6,
    "oversized": 4,
    "malformed": 4,
    "wrong key": 4,
}
"""Share of each kind of client."""


async def gauges(target: Target) -> dict[str, float]:
    """Numbers of /metrics without labels, by name."""
    async with Exchange(target) as exchange:
        await exchange.ask("GET", "/metrics")
        await exchange.begin()
        text = (await exchange.rest()).decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


@dataclasses.dataclass
class Report:
    """What a test found.

    Attributes:
      outcomes: of every request.
      seconds: how long clients asked.
      tokens: written by the server in that time.
      memory: resident bytes of the server before, at most, and after.
      left: requests and samples still there at the end.
    """

    outcomes: list[Outcome] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    tokens: float = 0.0
    memory: tuple[float, float, float] = (0.0, 0.0, 0.0)
    left: float = 0.0

    def table(self) -> str:
        """Counts and latencies by kind of client, ends, tokens, memory; as Markdown."""
        lines = ["| client | requests | p50 s | p95 s | p99 s | ends |", "|---|---|---|---|---|---|"]
        for kind in [*_MIX, "all"]:
            mine = [outcome for outcome in self.outcomes if kind in (outcome.kind, "all")]
            if mine:
                ends = collections.Counter(outcome.end for outcome in mine)
                shown = ", ".join(f"{end} {count}" for end, count in ends.most_common())
                cells = " | ".join(_percentiles([outcome.seconds for outcome in mine]))
                lines.append(f"| {kind} | {len(mine)} | {cells} | {shown} |")
        first = [outcome.first for outcome in self.outcomes if outcome.first is not None]
        lines.append("")
        lines.append(f"first text of streams after {' / '.join(_percentiles(first))} s (p50 / p95 / p99)")
        lines.append(f"{self.tokens / self.seconds:,.0f} tokens/s over {self.seconds:.0f} s")
        before, most, after = (size / 2**20 for size in self.memory)
        lines.append(f"memory of the server: {before:,.0f} MiB before, {most:,.0f} at most, {after:,.0f} after")
        lines.append(f"still waiting or running at the end: {self.left:.0f}")
        return "\n".join(lines)

    def faults(self, growth: float) -> list[str]:
        """What must not be; `growth` is how many bytes the server's memory may have grown."""
        ends = collections.Counter(outcome.end for outcome in self.outcomes)
        found = [f"{end}: {count}" for end, count in ends.items() if end.startswith(("WRONG", "HANGS"))]
        if not ends["ok"]:
            found.append("no request was answered")
        if self.left:
            found.append(f"{self.left:.0f} still wait or run")
        if self.memory[2] - self.memory[0] > growth:
            found.append(f"memory grew by {(self.memory[2] - self.memory[0]) / 2**20:.0f} MiB")
        return found


def _percentiles(values: Sequence[float]) -> list[str]:
    ordered = sorted(values)
    return [f"{ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.2f}" if ordered else "-" for share in
            (0.5, 0.95, 0.99)]  # fmt: skip


async def attack(target: Target, every: Sequence[Case], count: int, seconds: float, seed: int = 0) -> Report:
    """Asks for every case alone, then with `count` clients at once."""
    known: dict[int, Answer] = {}
    clients = Clients(target, known, every, random.Random(seed))
    for _ in range(2):  # the second time prompts are known to the server already
        for number in range(len(every)):
            answer = await clients.alone(number)
            if known.setdefault(number, answer) != answer:
                raise Wrong(f"request {number} has two answers: {known[number]} and {answer}")
    mix = {kind: share for kind, share in _MIX.items() if target.key or kind != "wrong key"}
    report, before, start = Report(), await gauges(target), time.monotonic()
    memory = [before.get("process_resident_memory_bytes", 0.0)]

    async def client(number: int) -> None:
        dice = random.Random(f"{seed} {number}")
        await asyncio.sleep(dice.random())
        while time.monotonic() - start < seconds:
            outcome = await clients.one(dice.choices(list(mix), list(mix.values()))[0])
            report.outcomes.append(outcome)
            if outcome.end == "queue full":
                await asyncio.sleep(dice.uniform(0.2, 1.0))

    async def watch() -> None:
        while True:
            await asyncio.sleep(1.0)
            memory.append((await gauges(target)).get("process_resident_memory_bytes", 0.0))

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(client(number) for number in range(count)))
    watching.cancel()
    report.seconds = time.monotonic() - start
    report.tokens = await _written(target) - before["hcxjax_generated_tokens_total"]
    after = await _settled(target)
    report.left = after["hcxjax_active_slots"] + after["hcxjax_queue_length"]
    memory.append(after.get("process_resident_memory_bytes", 0.0))
    report.memory = (memory[0], max(memory), memory[-1])
    return report


async def _written(target: Target) -> float:
    return (await gauges(target))["hcxjax_generated_tokens_total"]


async def _settled(target: Target) -> dict[str, float]:
    """The numbers when nothing waits or runs, or after the time in which that must be."""
    end = time.monotonic() + target.limit
    while True:
        now = await gauges(target)
        if now["hcxjax_active_slots"] + now["hcxjax_queue_length"] == 0 or time.monotonic() > end:
            return now
        await asyncio.sleep(0.2)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.load_test", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--host", default="127.0.0.1", help="of the server (default: %(default)s)")
    arguments.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    arguments.add_argument("--model", required=True, metavar="NAME", help="as /v1/models names it")
    arguments.add_argument("--api_key_file", metavar="FILE", help="with the key (default: environment HCXJAX_API_KEY)")
    arguments.add_argument("--clients", type=int, default=200, help="at once (default: %(default)s)")
    arguments.add_argument("--seconds", type=float, default=120.0, help="of asking (default: %(default)s)")
    arguments.add_argument("--limit", type=float, default=60.0, help="seconds for a request (default: %(default)s)")
    arguments.add_argument("--slow", type=float, default=8.0, help="seconds of slow reading (default: %(default)s)")
    arguments.add_argument("--growth", type=float, default=200.0, help="MiB of memory to allow (default: %(default)s)")
    arguments.add_argument("--no_chat", action="store_true", help="the model has no chat template")
    arguments.add_argument("--seed", type=int, default=0, help="of the clients' choices (default: %(default)s)")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Prints the table and what was wrong; 1 where something was."""
    options = parser().parse_args(argv)
    file = options.api_key_file
    key = Path(file).read_text().strip() if file else os.environ.get("HCXJAX_API_KEY")
    target = Target(options.host, options.port, options.model, key, options.limit, options.slow)
    try:
        every = cases(options.model, _CASES, options.seed, chat=not options.no_chat)
        report = asyncio.run(attack(target, every, options.clients, options.seconds, options.seed))
    except (Wrong, OSError) as error:
        print(f"load_test: {error}", file=sys.stderr)
        return 1
    print(report.table())
    faults = report.faults(options.growth * 2**20)
    for fault in faults:
        print(f"load_test: {fault}", file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
