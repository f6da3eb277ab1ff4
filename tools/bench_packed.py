"""An update on packed rows of short documents: attention that visits tiles with an allowed pair, beside a dense one.

Both updates are compiled in one process and take turns, a step each, on the same rows; ratios are of steps that
followed one another.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tools.bench_attention import Case
from tools.bench_device import jax_versions, write
from tools.bench_train_step import model_fields, whole_rows

PEER = "reference"


def add_packed(commands: Any) -> None:
    """The command line of `packed`."""
    packed = commands.add_parser("packed", help="an update on packed rows, by attention backend", description=__doc__)
    packed.set_defaults(run=bench_packed)
    packed.add_argument("--model", default="cpu", help="a file of gin/models, without .gin (default: %(default)s)")
    packed.add_argument("--attention", default="xla", help="DecoderConfig.attention (default: %(default)s)")
    packed.add_argument("--length", type=int, default=4096, help="tokens a row (default: %(default)s)")
    packed.add_argument("--rows", type=int, default=1, help="rows an update (default: %(default)s)")
    packed.add_argument(
        "--mean", type=int, nargs="+", default=[600], help="mean tokens of a document; 0: one a row (default: 600)"
    )
    packed.add_argument("--steps", type=int, default=5, help="of each backend (default: %(default)s)")
    packed.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")


def bench_packed(options: argparse.Namespace) -> int:
    """Prints a table."""
    results: dict[str, Any] = {"versions": jax_versions(), "options": vars(options) | {"run": None, "json": None}}
    print(f"| documents of | {PEER} s | {options.attention} s | ratio |\n|---|---|---|---|")
    for mean in options.mean:
        peer, ours = (stepper(options, mean, backend) for backend in (PEER, options.attention))
        pairs = [(peer(), ours()) for _ in range(options.steps + 1)][1:]  # the first is compiling
        results[str(mean)] = pairs
        seconds = [statistics.median(side) for side in zip(*pairs, strict=True)]
        ratio = statistics.median(one / other for one, other in pairs)
        print(f"| {mean or options.length} | {seconds[0]:.2f} | {seconds[1]:.2f} | **{ratio:.2f}** |", flush=True)
    write(options.json, results)
    return 0


def stepper(options: argparse.Namespace, mean: int, backend: str) -> Callable[[], float]:
    """Takes a step and says how many seconds it took."""
    import jax

    from hcxjax.mesh import Layout
    from hcxjax.models.config import DecoderConfig
    from hcxjax.objectives.language_model import LanguageModel
    from hcxjax.optim import AdamW, Cosine, SpikeGuard
    from hcxjax.update import Recipe, abstract_state, compiled_update, initial_state

    model = DecoderConfig(**model_fields(options.model))
    model = dataclasses.replace(model, attention=backend, max_length=max(options.length, model.max_length))
    case = Case(options.length, model.head_dim, mean, options.rows * options.length, model.num_heads * model.head_dim)
    rows = whole_rows(model.vocab_size, options.rows, options.length) | {"segment_ids_BT": case.segments}
    recipe = Recipe(LanguageModel(model), AdamW(Cosine(3e-4, steps=1000, warmup=100)), SpikeGuard(), 1, seed=0)
    layout, update = Layout(devices=(0, 1)), compiled_update()
    with layout.active():
        data = layout.shard_batch(lambda start, stop: {name: x[start:stop] for name, x in rows.items()}, options.rows)
        state = initial_state(recipe, abstract_state(recipe, layout))

    def step() -> float:
        nonlocal state
        began = time.perf_counter()
        with layout.active():
            state, metrics = update(recipe, state, data)
            jax.block_until_ready((state, metrics))
        return time.perf_counter() - began

    return step
