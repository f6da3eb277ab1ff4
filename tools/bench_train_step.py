"""One update of a model on rows of one document each, as training compiles it, beside the same model in PyTorch.

Both keep float32 weights and AdamW's moments and multiply in the model's dtype. MFU is of the model's own FLOPs
(`DecoderConfig.flops_per_token`; what is computed again is not counted) over the chip's, by its data sheet.
"""

import argparse
import ast
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hcxjax.chips import peak_flops
from tools.bench_device import SIDES, attempted, child, installed, jax_versions, median, steps_of, torch_versions, write

MODELS = Path(__file__).resolve().parents[1] / "gin" / "models"


class Size(NamedTuple):
    """A gin model, the length of rows, and batches of so many of them."""

    model: str
    length: int
    batches: tuple[int, ...]


SIZES = {"full": Size("1b", 4096, (4, 8, 16, 32)), "tiny": Size("quickstart", 64, (2,))}


def add_train_step(commands: Any) -> None:
    """The command line of `train_step`."""
    train = commands.add_parser("train_step", help="an update against the same model in PyTorch", description=__doc__)
    train.set_defaults(run=bench_train_step)
    train.add_argument("--size", choices=SIZES, default="full", help="(default: %(default)s)")
    train.add_argument("--model", help="a file of gin/models, without .gin (by size)")
    train.add_argument("--length", type=int, help="tokens a row (by size)")
    train.add_argument("--batch", type=int, nargs="+", help="rows; each that fits is measured (by size)")
    train.add_argument("--remat", help="DecoderConfig.remat (default: the model's)")
    train.add_argument("--attention", default="auto", help="DecoderConfig.attention (default: %(default)s)")
    train.add_argument("--loss_chunk", type=int, help="LanguageModel.loss_chunk (default: all positions at once)")
    train.add_argument("--steps", type=int, default=8, help="timed in a turn (default: %(default)s)")
    train.add_argument("--rounds", type=int, default=2, help="turns of each library (default: %(default)s)")
    train.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")
    train.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    train.add_argument("--rows", type=int, help=argparse.SUPPRESS)


def model_fields(name: str) -> dict[str, Any]:
    """The fields of a `DecoderConfig` that gin/models/NAME.gin binds; without gin, which accelerator images lack."""
    path = MODELS / f"{name}.gin"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in MODELS.glob("*.gin")))
        raise SystemExit(f"error: --model {name}: there is no {path.name} in gin/models; there are {known}")
    lines = [line.split("=") for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    values = {key.strip(): ast.literal_eval(value.strip()) for key, value in lines}
    fields = {key.partition(".")[2]: value for key, value in values.items() if key.startswith("DecoderConfig.")}
    return {"vocab_size": values["VOCAB_SIZE"], **fields}


def configured(options: argparse.Namespace) -> tuple[Any, int]:
    """(DecoderConfig, tokens a row)."""
    from hcxjax.models.config import DecoderConfig

    size = SIZES[options.size]
    length, fields = options.length or size.length, model_fields(options.model or size.model)
    changed = {"attention": options.attention, "max_length": max(length, fields["max_length"])}
    if options.remat:
        changed["remat"] = options.remat
    return DecoderConfig(**(fields | changed)), length


def bench_train_step(options: argparse.Namespace) -> int:
    """Prints a table; with --side (its own child) one JSON object."""
    model, length = configured(options)
    if options.side:
        ours = options.side == "jax"
        found = attempted(lambda: measure_ours(options) if ours else measure_torch(options))
        print(json.dumps(found | {"versions": jax_versions() if ours else torch_versions()}))
        return 0
    results: dict[str, Any] = {
        "model": dataclasses.asdict(model) | {"parameters": model.parameters, "loss_chunk": options.loss_chunk},
        "length": length,
        "flops_per_token": model.flops_per_token(length),
        "versions": {},
        "batches": {},
    }
    # Of a GPU's memory, which jax takes before it is asked for any, all but what the driver needs: as PyTorch can.
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    for _ in range(options.rounds):
        for batch in options.batch or SIZES[options.size].batches:
            sides = results["batches"].setdefault(str(batch), {})
            for side in filter(installed, SIDES):
                found = child(side, [*sys.argv[1:], "--rows", str(batch)])
                results["versions"] |= found.pop("versions", {})
                sides.setdefault(side, []).append(found)
    show(results)
    write(options.json, results)
    return 0


def show(results: dict[str, Any]) -> None:
    """A row a batch and side; medians of the rounds, ratios of tokens/s over PyTorch's at the same batch."""
    print("; ".join(f"{name} {value}" for name, value in results["versions"].items()))
    flops, length, peak = (
        results["flops_per_token"],
        results["length"],
        peak_flops(results["versions"].get("jax device", "")),
    )
    print("| rows x length | side | tokens/s | MFU | ratio | peak GB | step ms |\n|---|---|---|---|---|---|---|")
    for batch, sides in results["batches"].items():
        speeds = {}
        for side in reversed(sides):
            taken, memory = (median([one.get(name) for one in sides[side]]) for name in ("step_s", "peak_bytes"))
            if taken is None or memory is None:
                print(f"| {batch} x {length} | {side} | {sides[side][0]['error']} | | | | |")
                continue
            speed = speeds[side] = int(batch) * length / taken
            mfu = f"{speed * flops / peak:.1%}" if peak else "unknown chip"
            ratio = f"**{speed / speeds['torch']:.2f}**" if "torch" in speeds else ""
            row = f"| {batch} x {length} | {side} | {speed:,.0f} | {mfu} | {ratio} "
            print(f"{row}| {memory / 1e9:.2f} | {taken * 1e3:.1f} |")


def recipe_of(options: argparse.Namespace) -> Any:
    """What is measured (`hcxjax.update.Recipe`)."""
    from hcxjax.objectives.language_model import LanguageModel
    from hcxjax.optim import AdamW, Cosine, SpikeGuard
    from hcxjax.update import Recipe

    objective = LanguageModel(configured(options)[0], loss_chunk=options.loss_chunk)
    return Recipe(objective, AdamW(Cosine(3e-4, steps=1000, warmup=100)), SpikeGuard(), accumulate=1, seed=0)


def measure_ours(options: argparse.Namespace) -> dict[str, float]:
    """Seconds a step and peak memory of `compiled_update`."""
    import jax

    from hcxjax.mesh import Layout
    from hcxjax.tracking import peak_memory
    from hcxjax.update import abstract_state, compiled_update, initial_state

    (model, length), recipe = configured(options), recipe_of(options)
    layout, update = Layout(), compiled_update()
    rows = whole_rows(model.vocab_size, options.rows, length)
    with layout.active():
        data = layout.shard_batch(lambda start, stop: {name: x[start:stop] for name, x in rows.items()}, options.rows)
        state = initial_state(recipe, abstract_state(recipe, layout))

        def step() -> None:
            nonlocal state
            state, metrics = update(recipe, state, data)
            jax.block_until_ready((state, metrics))

        found = steps_of(step, options.steps)
    return found | {"peak_bytes": float(peak_memory()), "parameters": float(model.parameters)}


def measure_torch(options: argparse.Namespace) -> dict[str, float]:
    """The same of PyTorch."""
    from tools.bench_train_torch import measure

    model, length = configured(options)
    return measure(dataclasses.asdict(model), options.rows, length, options.steps)


def whole_rows(vocab_size: int, batch: int, length: int) -> dict[str, np.ndarray]:
    """A batch of rows of one document each; speed does not depend on what they say."""
    tokens_BS = np.random.default_rng(0).integers(0, vocab_size, (batch, length + 1), dtype=np.int32)
    ones_BT = np.ones((batch, length), np.int32)
    return {
        "tokens_BT": tokens_BS[:, :-1],
        "targets_BT": tokens_BS[:, 1:],
        "weights_BT": ones_BT.astype(np.float32),
        "segment_ids_BT": ones_BT,
        "positions_BT": np.broadcast_to(np.arange(length, dtype=np.int32), (batch, length)),
        "source_B": np.zeros(batch, np.int32),
    }
