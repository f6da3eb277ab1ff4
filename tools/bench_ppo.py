"""PPO beside TRL's, ahead of itself beside in turn, and what unlikelihood costs: `python -m tools.bench ppo`."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.bench_ppo_case import Case
from tools.bench_ppo_unlikelihood import unlikelihood

TRL = "trl"

PLAYERS: dict[str, dict[str, Any]] = {
    "in turn": {},
    "lag 1": {"lag": 1},
    "lag 1, by arrival": {"lag": 1, "order": "arrival"},
}
"""Sides of --asynchronous: name → fields of `Rollouts`."""

SHAPE: dict[str, Any] = {
    "vocab_size": 2048,
    "num_layers": 4,
    "embed_dim": 128,
    "mlp_dim": 320,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 64,
    "max_length": 512,
    "rope_theta": 10000.0,
    "dtype": "float32",
    "remat": "dots",
}
"""That of gin/models/quickstart.gin."""

SKEWED = {"long_share": 0.05, "new_tokens": 240}
"""The asynchronous measurement: a few answers go to the limit, ten times as long as the others."""


def add_ppo(commands: Any) -> None:
    """The command line of `ppo`."""
    ppo = commands.add_parser("ppo", help="rollouts and updates of PPO against TRL's PPOTrainer")
    ppo.set_defaults(run=bench_ppo)
    kinds = ppo.add_mutually_exclusive_group()
    kinds.add_argument(
        "--asynchronous", action="store_true", help="instead: lag 1 against taking turns, skewed lengths"
    )
    kinds.add_argument("--unlikelihood", action="store_true", help="instead: what unlikelihood costs in an update")
    ppo.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    ppo.add_argument("--rollouts", type=int, default=5, help="timed in a turn (default: %(default)s)")
    ppo.add_argument("--warm", type=int, default=3, help="rollouts before these (default: %(default)s)")
    ppo.add_argument("--episodes", type=int, default=64, help="answers a rollout (default: %(default)s)")
    ppo.add_argument("--mean", type=float, default=24.0, help="tokens of an answer without a limit (default: 24)")
    ppo.add_argument("--new_tokens", type=int, help="of an answer at most (default: 64; 240 with --asynchronous)")
    ppo.add_argument("--shape", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of DecoderConfig to change")
    ppo.add_argument("--peer_python", default=sys.executable, metavar="PROGRAM", help="a Python that has trl==1.12.0")
    ppo.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")
    ppo.add_argument("--side", help=argparse.SUPPRESS)
    ppo.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


def bench_ppo(options: argparse.Namespace) -> int:
    """Prints a table; with --side (its own child) one JSON object."""
    if options.side:
        if options.side != TRL:
            import jax

            jax.config.update("jax_num_cpu_devices", min(2, os.cpu_count() or 1))
        print(json.dumps(side(options.side, options.folder)))
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        case = prepared(asked(options), folder)
        if options.unlikelihood:
            results = unlikelihood(case, folder)
        else:
            sides = ("hcxjax", TRL) if not options.asynchronous else tuple(PLAYERS)
            results = compare(sides, folder, options.rounds, options.peer_python)
            print(
                f"{case.episodes} episodes, {case.epochs} epochs; prompts of 4 to {case.prompt_tokens} tokens, answers "
                f"of up to {case.new_tokens}"
            )
            show(results, against="in turn" if options.asynchronous else TRL)
            if options.asynchronous:
                busy = [
                    statistics.median(one[name] for one in results["in turn"])
                    for name in ("engine_cores", "other_cores")
                ]
                print(f"in turn: {busy[0]:.2f} cores are busy while the engine writes, {busy[1]:.2f} else")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


def asked(options: argparse.Namespace) -> Case:
    """The case that a command line describes."""
    changes = {name: json.loads(value.lower()) for name, value in (field.split("=") for field in options.shape)}
    more: dict[str, Any] = dict(SKEWED) if options.asynchronous else {}
    if options.new_tokens:
        more["new_tokens"] = options.new_tokens
    return Case(
        {**SHAPE, **changes},
        episodes=options.episodes,
        mean_tokens=options.mean,
        warm=options.warm,
        rollouts=options.rollouts,
        **more,
    )


def prepared(case: Case, folder: Path) -> Case:
    """The case as it was written into `folder`, beside weights that stop as often as it asks."""
    from hcxjax.models.config import DecoderConfig
    from tools.bench_ppo_ours import calibrated
    from tools.random_checkpoint import write_checkpoint

    write_checkpoint(folder / "model", DecoderConfig(**case.shape), dtype="float32", seed=case.seed)
    case = calibrated(case, folder)
    case.write(folder)
    return case


def side(name: str, folder: Path) -> dict[str, float]:
    """Measurements of one side of the case in `folder`, in this process."""
    case = Case.read(folder)
    if name == TRL:
        from tools.bench_ppo_trl import measure

        return measure(case, folder)
    from tools.bench_ppo_ours import measure as measure_ours

    return measure_ours(case, folder, **PLAYERS.get(name, {}))


def compare(sides: Sequence[str], folder: Path, rounds: int, peer_python: str) -> dict[str, list[dict[str, float]]]:
    """Measurements of each side, turn by turn, each in a process of its own."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for number in range(rounds):
        for side in sides:
            program = peer_python if side == TRL else sys.executable
            call = [program, "-m", "tools.bench", "ppo", "--side", side, "--folder", str(folder)]
            child = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
            results[side].append(json.loads(child.stdout.splitlines()[-1]))
            speed = results[side][-1]["episodes_per_s"]
            print(f"round {number + 1}/{rounds} {side}: {speed:.1f} episodes/s", file=sys.stderr)
    return results


COLUMNS = {
    "tokens/s": ("tokens_per_s", ",.0f"),
    "generate s": ("generate_s", ".2f"),
    "score s": ("score_s", ".2f"),
    "train s": ("train_s", ".2f"),
    "cores busy": ("cores", ".2f"),
    "length": ("length", ".1f"),
    "stop rate": ("stop_rate", ".0%"),
    "peak MB": ("peak_mb", ",.0f"),
}
"""Head → (measure, its form), after episodes/s and the ratio."""


def show(results: dict[str, list[dict[str, float]]], against: str) -> None:
    """A row a side, medians of its rounds; ratios are those of episodes/s over those of the side `against`."""

    def middle(side: str, name: str) -> float:
        return statistics.median(one[name] for one in results[side])

    print("".join(f"| {head} " for head in ("side", "episodes/s", "ratio", *COLUMNS)) + "|")
    print("|---" * (len(COLUMNS) + 3) + "|")
    for side in results:
        speed = middle(side, "episodes_per_s")
        cells = (f"| {middle(side, name):{form}} " for name, form in COLUMNS.values())
        print(f"| {side} | {speed:.1f} | **{speed / middle(against, 'episodes_per_s'):.2f}** {''.join(cells)}|")
