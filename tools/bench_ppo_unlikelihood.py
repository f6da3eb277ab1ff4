"""What unlikelihood adds to an update of PPO: `python -m tools.bench ppo --unlikelihood`."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from tools.bench_ppo_case import Case

PAIRS, UPDATES = 10, 3
"""Interleaved pairs with and without unlikelihood, and updates of each in a pair."""


def unlikelihood(case: Case, folder: Path) -> dict[str, float]:
    """Prints what unlikelihood adds to an update: FLOPs as compiled, and seconds, the median of interleaved pairs."""
    from tools.bench_ppo_ours import Updates

    # Of a loop the compiler counts one turn: the layers are unrolled, so that all are counted.
    unrolled = {**case.shape, "scan_unroll": case.shape["num_layers"]}
    counted = Updates(dataclasses.replace(case, shape=unrolled), folder)
    plain, more, marks = counted.flops(0.0), counted.flops(1.0), counted.marking()[0] / case.epochs
    timed = Updates(case, folder)
    seconds = pairs(timed.runner(0.0), timed.runner(1.0), PAIRS)
    marking = timed.marking()[1] / case.epochs
    ratios = [(second + marking) / first for first, second in seconds]
    results = {
        "flops": plain,
        "flops_share": (more + marks - plain) / plain,
        "update_s": statistics.median(first for first, _ in seconds),
        "marks_s": marking,
        "time_share": statistics.median(ratios) - 1,
        "least": min(ratios) - 1,
        "most": max(ratios) - 1,
    }
    print("| FLOPs of an update | share of unlikelihood | update s | share in time, median of 10 pairs | least, most |")
    print("|---|---|---|---|---|")
    print(
        f"| {results['flops']:.4g} | **{results['flops_share']:.3%}** | {results['update_s']:.3f} "
        f"| **{results['time_share']:+.2%}** | {results['least']:+.1%}, {results['most']:+.1%} |"
    )
    return results


def pairs(first: Callable[[], None], second: Callable[[], None], count: int) -> list[tuple[float, float]]:
    """(seconds of an update, of the other's), turn by turn, each time in the other order."""
    sides = (first, second)
    for side in sides:
        side()
    found = []
    for number in range(count):
        order = (0, 1) if number % 2 == 0 else (1, 0)
        took = [0.0, 0.0]
        for place in order:
            began = time.perf_counter()
            for _ in range(UPDATES):
                sides[place]()
            took[place] = (time.perf_counter() - began) / UPDATES
        found.append((took[0], took[1]))
    return found
