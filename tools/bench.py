"""Speed and memory beside a peer, measured in the same run: ratios, because machines differ and are noisy.

python -m tools.bench train                       our update against transformers' Llama in PyTorch, fp32
python -m tools.bench train --size 8m --rounds 5 --json bench.json
python -m tools.bench data                        the reader of packed rows against what the model takes in
python -m tools.bench generate                    the engine against transformers' generate, requests of all lengths
python -m tools.bench int8 --model runs/quickstart --text held_out.jsonl        what int8 costs in quality
python -m tools.bench ppo                         rollouts and updates of PPO against TRL's PPOTrainer
python -m tools.bench ppo --asynchronous          rollouts that run ahead against taking turns, skewed lengths
python -m tools.bench ppo --unlikelihood          what unlikelihood adds to an update
python -m tools.bench packed                      an update on packed rows against one with dense attention
python -m tools.bench head                        memory of the vocabulary's scores by chunk, compiled and not run
python -m tools.bench bundles                     the TPU attention kernels beside splash, compiled without a TPU
python -m tools.bench attention                   our attention backends against cuDNN's and PyTorch's, alone
python -m tools.bench decode                      attention over a cache, as a share of the memory's bandwidth
python -m tools.bench train_step                  an update of the 1b model against the same in PyTorch, compiled

The last three are for accelerators, run on machines without gin, seqio and TensorFlow, and take `--size tiny` on a CPU.

`train`, `generate` and `ppo` need the extra `bench` (pip install -e '.[bench]'; a CPU build of torch will do). Each
side runs in a process of its own, turn by turn: memory is its own, and a noisy minute hits both. The median of the
rounds counts.
"""

import argparse
import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench_attention import add_attention
from tools.bench_bundles import add_bundles
from tools.bench_decode import add_decode
from tools.bench_engine import add_generate, add_int8
from tools.bench_head import add_head
from tools.bench_packed import add_packed
from tools.bench_ppo import add_ppo
from tools.bench_train_step import add_train_step, whole_rows

SIZES = {
    "quickstart": [],
    "8m": [
        "VOCAB_SIZE=8192",
        "DecoderConfig.num_layers=6",
        "DecoderConfig.embed_dim=256",
        "DecoderConfig.mlp_dim=704",
        "DecoderConfig.num_heads=4",
        "DecoderConfig.num_kv_heads=2",
        "BATCH=8",
    ],
}
"""Overrides of gin/runs/quickstart.gin."""

SIDES = ("hcxjax", "torch")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m tools.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = arguments.add_subparsers(dest="command", required=True)
    train = commands.add_parser("train", help="one optimizer update on a full batch")
    train.add_argument("--size", nargs="+", choices=SIZES, default=list(SIZES), help="(default: all)")
    train.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    train.add_argument("--steps", type=int, default=8, help="timed updates a turn (default: %(default)s)")
    train.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")
    train.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    train.add_argument("--shape", type=json.loads, help=argparse.SUPPRESS)
    data = commands.add_parser("data", help="rows read from the token store, one thread, nothing else going on")
    data.add_argument("--gin_file", default="gin/runs/quickstart.gin", help="whose corpus (default: %(default)s)")
    data.add_argument("--binding", nargs="*", default=[], metavar="NAME=VALUE", help="gin bindings, as of DATA_DIR")
    data.add_argument("--length", type=int, nargs="+", default=[256, 4096, 32768], help="(default: %(default)s)")
    data.add_argument("--seconds", type=float, default=5.0, help="of reading at each length (default: %(default)s)")
    data.add_argument("--rounds", type=int, default=3, help="turns of each (default: %(default)s)")
    train.set_defaults(run=bench_train)
    data.set_defaults(run=bench_data)
    add_generate(commands)
    add_int8(commands)
    add_ppo(commands)
    add_attention(commands)
    add_decode(commands)
    add_train_step(commands)
    add_packed(commands)
    add_bundles(commands)
    add_head(commands)
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Runs what the command line names."""
    options = parser().parse_args(argv)
    return options.run(options)


def bench_train(options: argparse.Namespace) -> int:
    """Prints a table; with --side (its own child) one JSON object."""
    if options.side:
        ours = options.side == "hcxjax"
        numbers = measure_ours(options.size[0], options.steps) if ours else measure_torch(options.shape, options.steps)
        print(json.dumps(numbers))
        return 0
    results = {size: compare(size, options.rounds, options.steps) for size in options.size}
    print(
        "| size | parameters | batch x length | hcxjax tok/s | PyTorch tok/s | ratio | hcxjax MB | PyTorch MB | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for size, sides in results.items():
        ours, theirs = (median(sides[side]) for side in SIDES)
        print(
            f"| {size} | {ours['parameters']:,.0f} | {ours['batch']:.0f} x {ours['length']:.0f} "
            f"| {ours['tokens_per_s']:,.0f} | {theirs['tokens_per_s']:,.0f} "
            f"| **{ours['tokens_per_s'] / theirs['tokens_per_s']:.2f}** "
            f"| {ours['peak_mb']:,.0f} | {theirs['peak_mb']:,.0f} | {ours['peak_mb'] / theirs['peak_mb']:.2f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))
    return 0


def bench_data(options: argparse.Namespace) -> int:
    """Prints tokens/s of the reader at each length, and how many times the model's."""
    from hcxjax.data.packed import PackedTokens
    from hcxjax.main import configure
    from hcxjax.mesh import Layout
    from hcxjax.train import Experiment

    with tempfile.TemporaryDirectory() as folder:
        given = [f"RUN_DIR={folder}", *options.binding]
        experiment, _ = configure([options.gin_file], given)
        assert isinstance(experiment, Experiment) and isinstance(experiment.source, PackedTokens)
        sources = {length: dataclasses.replace(experiment.source, length=length) for length in options.length}
        for source in sources.values():
            source.start(Layout(rules=(("batch", None),)), None)
        read: dict[int, list[float]] = {length: [] for length in sources}
        taken = []
        for _ in range(options.rounds):
            for length, source in sources.items():
                read[length].append(reading_speed(source, options.seconds))
            taken.append(measure_child("quickstart", 8)["tokens_per_s"])
        model = statistics.median(taken)
        print("| length | reader, tokens/s | quickstart model, tokens/s | times | padding |\n|---|---|---|---|---|")
        for length, source in sources.items():
            speed = statistics.median(read[length])
            print(f"| {length:,} | {speed:,.0f} | {model:,.0f} | **{speed / model:.0f}** | {source.padding:.2%} |")
            source.close()
    return 0


def reading_speed(source: Any, seconds: float) -> float:
    """Tokens of rows built in a second, from where an epoch begins."""
    source.rows(0, 4)
    began, rows = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        source.rows(rows, rows + 4)
        rows += 4
    return rows * source.length / (time.perf_counter() - began)


def measure_child(size: str, steps: int) -> dict[str, float]:
    """`measure_ours` in a process of its own."""
    call = [sys.executable, "-m", "tools.bench", "train", "--side", SIDES[0], "--size", size, "--steps", str(steps)]
    child = subprocess.run(call, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(child.stdout.splitlines()[-1])


def compare(size: str, rounds: int, steps: int) -> dict[str, list[dict[str, float]]]:
    """Measurements of each side, turn by turn."""
    # The peer is told its shape: importing our side to find it out would be counted as its memory.
    _, model, batch, length = configured(size)
    shape = json.dumps(dataclasses.asdict(model) | {"batch": batch, "length": length})
    call = [sys.executable, "-m", "tools.bench", "train", "--size", size, "--steps", str(steps), "--shape", shape]
    results: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for number in range(rounds):
        for side in SIDES:
            child = subprocess.run([*call, "--side", side], stdout=subprocess.PIPE, text=True, check=True)
            results[side].append(json.loads(child.stdout.splitlines()[-1]))
            speed = results[side][-1]["tokens_per_s"]
            print(f"{size} round {number + 1}/{rounds} {side}: {speed:,.0f} tokens/s", file=sys.stderr)
    return results


def median(measurements: list[dict[str, float]]) -> dict[str, float]:
    """Each number's median over the rounds."""
    return {name: statistics.median(one[name] for one in measurements) for name in measurements[0]}


def configured(size: str):
    """(experiment, model, rows a batch, tokens a row) of a size."""
    from hcxjax.data.packed import PackedTokens
    from hcxjax.main import configure
    from hcxjax.objectives.language_model import LanguageModel
    from hcxjax.train import Experiment

    experiment, _ = configure(["gin/runs/quickstart.gin"], SIZES[size])
    assert isinstance(experiment, Experiment)
    objective, source = experiment.objective, experiment.source
    assert isinstance(objective, LanguageModel) and isinstance(source, PackedTokens)
    return experiment, objective.model, source.batch, source.length


def measure_ours(size: str, steps: int) -> dict[str, float]:
    """The update that training runs, on rows of one document each."""
    import jax

    from hcxjax.update import abstract_state, initial_state, update

    experiment, model, batch, length = configured(size)
    rows = whole_rows(model.vocab_size, batch, length)
    layout, recipe = experiment.layout, experiment.recipe(experiment.timeline.at(1))
    with layout.active():
        data = layout.shard_batch(lambda start, stop: {name: value[start:stop] for name, value in rows.items()}, batch)
        state = initial_state(recipe, abstract_state(recipe, layout))
        step = jax.jit(update, static_argnums=0, donate_argnums=1)

        def run() -> None:
            nonlocal state
            state, metrics = step(recipe, state, data)
            jax.block_until_ready((state, metrics))

        return timed(run, steps, batch, length, model.parameters)


def measure_torch(shape: dict[str, Any], steps: int) -> dict[str, float]:
    """transformers' Llama of the same shape: SDPA attention, fused AdamW, clipping; fp32, all cores.

    Args:
      shape: fields of a `DecoderConfig`, with `batch` and `length`.
    """
    import torch
    import transformers

    batch, length = shape["batch"], shape["length"]
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    llama = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["embed_dim"],
            intermediate_size=shape["mlp_dim"],
            num_hidden_layers=shape["num_layers"],
            num_attention_heads=shape["num_heads"],
            num_key_value_heads=shape["num_kv_heads"],
            head_dim=shape["head_dim"],
            max_position_embeddings=shape["max_length"],
            tie_word_embeddings=shape["tie_embeddings"],
            use_cache=False,
            attn_implementation="sdpa",  # pyright: ignore[reportCallIssue]
        )
    )
    adamw = torch.optim.AdamW(llama.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    tokens_BS = torch.from_numpy(random_tokens(shape["vocab_size"], batch, length + 1)).long()

    def run() -> None:
        adamw.zero_grad(set_to_none=True)
        logits_BTV = llama(input_ids=tokens_BS[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits_BTV.flatten(0, 1), tokens_BS[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        adamw.step()

    return timed(run, steps, batch, length, sum(weight.numel() for weight in llama.parameters()))


def random_tokens(vocab_size: int, rows: int, length: int):
    """Ids drawn evenly; speed does not depend on what they say."""
    import numpy as np

    return np.random.default_rng(0).integers(0, vocab_size, (rows, length), dtype=np.int32)


def timed(run: Callable[[], None], steps: int, batch: int, length: int, parameters: int) -> dict[str, float]:
    """Median speed of `steps` calls after two that warm up (and compile)."""
    began = time.perf_counter()
    run()
    first = time.perf_counter() - began
    run()
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return {
        "tokens_per_s": batch * length / statistics.median(seconds),
        "step_s": statistics.median(seconds),
        "first_call_s": first,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "parameters": parameters,
        "batch": batch,
        "length": length,
    }


if __name__ == "__main__":
    sys.exit(main())
