"""The engine beside transformers' generate, and int8 beside float32: what `python -m tools.bench` shows of writing."""

import argparse
import dataclasses
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

SHAPES = {
    "19m": "vocab_size=16384 num_layers=8 embed_dim=384 mlp_dim=1024 num_heads=6 num_kv_heads=2 head_dim=64",
    "42m": "vocab_size=32768 num_layers=8 embed_dim=512 mlp_dim=1536 num_heads=8 num_kv_heads=4 head_dim=64",
    "0.5b": "",
    "1b": "vocab_size=100352 num_layers=16 embed_dim=2048 mlp_dim=5632 num_heads=16 num_kv_heads=8 head_dim=128",
}
"""Fields that tools.random_checkpoint is given; 0.5b are its own."""

PROMPT, LIMIT = (16, 128), (8, 512)
"""Tokens of a prompt, drawn evenly, and of a continuation, drawn log-uniformly: bounds included."""


def add_generate(commands: Any) -> None:
    """The command line of `generate`."""
    generate = commands.add_parser("generate", help="the engine against transformers' generate")
    generate.set_defaults(run=bench_generate)
    generate.add_argument("--size", choices=SHAPES, default="19m", help="random weights (default: %(default)s)")
    generate.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    generate.add_argument("--requests", type=int, default=64, help="(default: %(default)s)")
    generate.add_argument("--slots", type=int, default=16, help="of the engine (default: %(default)s)")
    generate.add_argument("--steps", type=int, default=4, help="of a round (default: %(default)s)")
    generate.add_argument(
        "--batch", type=int, nargs="+", default=[8, 16, 32, 64], help="transformers' batch sizes; its best counts"
    )
    generate.add_argument("--rounds", type=int, default=3, help="turns of each side (default: %(default)s)")
    generate.add_argument("--temperature", type=float, default=0.0, help="of both (default: %(default)s, greedy)")
    generate.add_argument("--sorted", action="store_true", help="transformers is told all lengths, and sorts by them")
    generate.add_argument("--compile", action="store_true", help="transformers with a static cache and torch.compile")
    generate.add_argument("--int8", nargs="*", choices=("weights", "cache"), default=[], help="of the engine")
    generate.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")
    generate.add_argument("--side", help=argparse.SUPPRESS)
    generate.add_argument("--folder", type=Path, help=argparse.SUPPRESS)


def add_int8(commands: Any) -> None:
    """The command line of `int8`."""
    int8 = commands.add_parser("int8", help="what int8 weights and caches cost a model in quality")
    int8.set_defaults(run=bench_int8)
    int8.add_argument("--model", required=True, metavar="DIR", help="a run, a model folder or a Hugging Face folder")
    int8.add_argument("--text", type=Path, required=True, metavar="FILE", help="JSON lines with `text`, one a document")
    int8.add_argument("--documents", type=int, default=200, help="(default: %(default)s)")
    int8.add_argument("--length", type=int, default=256, help="tokens of each at most (default: %(default)s)")


def requests_of(count: int, vocabulary: int) -> list[tuple[list[int], int]]:
    """(prompt, tokens to write) of each request; the same for both sides."""
    rng = np.random.default_rng(0)
    limits = np.exp(rng.uniform(math.log(LIMIT[0]), math.log(LIMIT[1] + 1), count)).astype(int)
    lengths = rng.integers(PROMPT[0], PROMPT[1] + 1, count)
    return [
        (rng.integers(0, vocabulary, length).tolist(), int(limit))
        for length, limit in zip(lengths, limits, strict=True)
    ]


def bench_generate(options: argparse.Namespace) -> int:
    """Prints a table of both sides; with --side (its own child) one JSON object."""
    if options.side:
        side, _, batch = options.side.partition(":")
        measured = measure_engine(options) if side == "hcxjax" else measure_transformers(options, int(batch))
        print(json.dumps(measured))
        return 0
    sides = ["hcxjax", *(f"transformers:{batch}" for batch in options.batch)]
    results: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        _weights(options, Path(folder) / "model")
        given = [argument for argument in sys.argv[1:] if argument]
        call = [sys.executable, "-m", "tools.bench", *given, "--folder", str(Path(folder) / "model"), "--side"]
        for number in range(options.rounds):
            for side in sides:
                child = subprocess.run([*call, side], stdout=subprocess.PIPE, text=True, check=True)
                results[side].append(json.loads(child.stdout.splitlines()[-1]))
                speed = results[side][-1]["tokens_per_s"]
                print(f"round {number + 1}/{options.rounds} {side}: {speed:,.0f} tokens/s", file=sys.stderr)
    _show(results, options)
    if options.json:
        options.json.write_text(json.dumps(results))
    return 0


def _weights(options: argparse.Namespace, folder: Path) -> None:
    from tools import random_checkpoint

    shape = ["--shape", *SHAPES[options.size].split()] if SHAPES[options.size] else []
    if random_checkpoint.main([str(folder), *shape, "--dtype", options.dtype]):
        raise SystemExit(1)


def _show(results: dict[str, list[dict[str, Any]]], options: argparse.Namespace) -> None:
    def middle(side: str, name: str) -> float:
        return statistics.median(one[name] for one in results[side])

    ours, *others = results
    best = max(others, key=lambda side: middle(side, "tokens_per_s"))
    written = results[ours][0]["texts"]
    print(f"{options.size}, {options.dtype}, {options.requests} requests, {sum(map(len, written)):,} tokens to write")
    print("| side | tokens/s | ratio | first token, median s | 95 % s | rows busy | peak MB | same texts |")
    print("|---|---|---|---|---|---|---|---|")
    for side in results:
        same = statistics.mean(one == other for one, other in zip(results[side][0]["texts"], written, strict=True))
        mark = " (best)" if side == best else ""
        print(
            f"| {side}{mark} | {middle(side, 'tokens_per_s'):,.0f} "
            f"| {middle(ours, 'tokens_per_s') / middle(side, 'tokens_per_s'):.2f} "
            f"| {middle(side, 'first_median_s'):.2f} | {middle(side, 'first_p95_s'):.2f} | {middle(side, 'busy'):.0%} "
            f"| {middle(side, 'peak_mb'):,.0f} | {same:.0%} |"
        )


def _measured(began: float, firsts: list[float], texts: list[list[int]], busy: float) -> dict[str, Any]:
    seconds = time.perf_counter() - began
    return {
        "tokens_per_s": sum(map(len, texts)) / seconds,
        "first_median_s": statistics.median(firsts),
        "first_p95_s": float(np.quantile(firsts, 0.95)),
        "busy": busy,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "texts": texts,
    }


def measure_engine(options: argparse.Namespace) -> dict[str, Any]:
    """All requests submitted at once; time from then on, after a warm-up."""
    from hcxjax.convert.model import load
    from hcxjax.inference.engine import Engine, EngineSettings
    from hcxjax.inference.requests import Continuation, Request
    from hcxjax.inference.sampling import Sampling
    from hcxjax.mesh import Layout
    from hcxjax.models.int8 import in_dtype, quantized

    layout = Layout()
    with layout.active():
        model, params = load(options.folder, layout)
        model = dataclasses.replace(model, dtype=options.dtype)
        params = quantized(params) if "weights" in options.int8 else in_dtype(params, model.dtype)
        asked = requests_of(options.requests, model.vocab_size)
        cache = "int8" if "cache" in options.int8 else None
        context = PROMPT[1] + LIMIT[1]
        settings = EngineSettings(slots=options.slots, context=context, steps=options.steps, cache_dtype=cache)
        engine = Engine(model, params, settings=settings)
        engine.warm_up()
        sampling = Sampling(temperature=options.temperature)
        texts, firsts = [Continuation() for _ in asked], [0.0] * len(asked)
        began = time.perf_counter()
        for number, (prompt, limit) in enumerate(asked):
            engine.submit(Request(prompt, limit, sampling, stream=number))
        while not engine.idle:
            for delta in engine.advance():
                firsts[delta.request] = firsts[delta.request] or time.perf_counter() - began
                texts[delta.request].add(delta)
        busy = engine.counts.written / engine.counts.slot_steps
        return _measured(began, firsts, [text.tokens for text in texts], busy)


def measure_transformers(options: argparse.Namespace, batch: int) -> dict[str, Any]:
    """Static batches in the order of the requests; each runs as long as its longest."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    llama: Any = transformers.AutoModelForCausalLM.from_pretrained(
        options.folder, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
    )
    llama = llama.to(device).eval()
    asked = requests_of(options.requests, llama.config.vocab_size)
    order = list(range(len(asked)))
    if options.sorted:
        order.sort(key=lambda number: asked[number][1])
    extra = {"cache_implementation": "static"} if options.compile else {}
    texts: list[list[int]] = [[] for _ in asked]
    firsts, rows = [0.0] * len(asked), 0

    def write(numbers: list[int], mark: bool) -> Any:
        longest = max(len(asked[number][0]) for number in numbers)
        tokens = torch.zeros((len(numbers), longest), dtype=torch.long)
        mask = torch.zeros_like(tokens)
        for row, number in enumerate(numbers):
            prompt = asked[number][0]
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1

        def look(ids: Any, scores: Any, **_: Any) -> Any:
            for number in numbers if mark and not firsts[numbers[0]] else ():
                firsts[number] = time.perf_counter() - began
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        with torch.inference_mode():
            return llama.generate(
                input_ids=tokens.to(device),
                attention_mask=mask.to(device),
                max_new_tokens=max(asked[number][1] for number in numbers),
                do_sample=options.temperature > 0,
                **({"temperature": options.temperature, "top_k": 0} if options.temperature > 0 else {}),
                pad_token_id=0,
                eos_token_id=None,
                stopping_criteria=[look],
                **extra,
            )[:, longest:].tolist()

    began = time.perf_counter()
    write(order[: min(4, batch)] if not options.compile else order[:batch], mark=False)  # warm
    began = time.perf_counter()
    for start in range(0, len(order), batch):
        numbers = order[start : start + batch]
        for number, ids in zip(numbers, write(numbers, mark=True), strict=True):
            texts[number] = ids[: asked[number][1]]
        rows += len(numbers) * max(asked[number][1] for number in numbers)
    return _measured(began, firsts, texts, sum(map(len, texts)) / rows)


def bench_int8(options: argparse.Namespace) -> int:
    """Prints perplexity and agreement of int8 weights and caches, beside those of the model as it is."""
    from hcxjax.inference.engine import Engine, EngineSettings
    from hcxjax.models.int8 import quantized
    from tools.opening import open_model

    opened = open_model(options.model)
    length = min(options.length, opened.model.max_length)
    texts = [json.loads(line)["text"] for line in options.text.read_text().splitlines()[: options.documents]]
    with opened.layout.active():
        end = opened.vocabulary.end_of_text
        pairs = [([end], opened.vocabulary.encode(text)[: length - 1]) for text in texts]
        kinds = {
            "as it is": (opened.params, None),
            "int8 weights": (quantized(opened.params), None),
            "int8 cache": (opened.params, "int8"),
            "both": (quantized(opened.params), "int8"),
        }
        print(f"{options.model}: {len(pairs)} documents, {sum(len(pair[1]) for pair in pairs):,} tokens")
        print("| | perplexity | likeliest token as before | weights MB | cache, bytes a token |")
        print("|---|---|---|---|---|")
        before: list[np.ndarray] = []
        for name, (params, cache) in kinds.items():
            settings = EngineSettings(slots=1, context=-(-length // 128) * 128, cache_dtype=cache, prefix_tokens=0)
            settings = dataclasses.replace(settings, context=min(settings.context or 0, opened.model.max_length))
            engine = Engine(opened.model, params, settings=settings)
            scores = engine.score(pairs)
            nats = -sum(float(score.logprobs.sum()) for score in scores) / sum(len(score.logprobs) for score in scores)
            likely = [score.likeliest for score in scores]
            before = before or likely
            agreement = np.mean(np.concatenate(likely) == np.concatenate(before))
            print(
                f"| {name} | {math.exp(nats):.4f} | {agreement:.2%} | {_megabytes(params):,.1f} "
                f"| {engine.cache_bytes_per_token:,} |"
            )
    return 0


def _megabytes(tree: Any) -> float:
    import jax

    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) / 1e6
