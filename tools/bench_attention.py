"""Attention alone, forward and backward: our backends beside cuDNN on whole rows and PyTorch's SDPA.

Useful FLOPs: forward 4·N·H·Σ n(n+1)/2 over the documents of n tokens, two products over the causal pairs; backward 2.5
times that, five products. The peers are told of no documents: on packed rows they compute whole rows, and their useful
FLOP/s are those of the documents too, so that all ratios are ratios of times.
"""

import argparse
import dataclasses
import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.bench_device import SIDES, attempted, child, installed, jax_versions, median, timed, torch_versions, write

CUDNN, SDPA = "cuDNN, whole rows", "PyTorch SDPA, whole rows"
PEERS = (CUDNN, SDPA)
PASSES = ("forward", "backward")


@dataclasses.dataclass(frozen=True)
class Size:
    """What is measured, with four query heads a KV head.

    Attributes:
      means: of the documents' lengths in tokens; 0 is one document a row.
      tokens: of a batch, in rows of each length.
      width: heads · head_dim.
    """

    lengths: tuple[int, ...]
    head_dims: tuple[int, ...]
    means: tuple[int, ...]
    tokens: int
    width: int


SIZES = {
    "full": Size((4096, 16384, 32768), (64, 128), (0, 600, 1500, 4000), tokens=32768, width=2048),
    "tiny": Size((64, 96), (16,), (0, 20), tokens=192, width=64),
}

MOST_DENSE = 1024
"""Length of rows up to which the reference, which holds all scores, is measured too."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One shape, in bfloat16."""

    length: int
    head_dim: int
    mean: int
    tokens: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(rows, length, query heads, head_dim); KV heads are a fourth of the query heads."""
        return max(1, self.tokens // self.length), self.length, self.width // self.head_dim, self.head_dim

    @property
    def name(self) -> str:
        """As the results call it."""
        documents = f"documents of {self.mean}" if self.mean else "one document"
        return f"{self.shape[0]} x {self.length}, head dim {self.head_dim}, {documents}"

    @functools.cached_property
    def segments(self) -> np.ndarray:
        """[rows, length]: documents of log-normal lengths (σ 1) with the mean asked for; the last is cut off."""
        rows, length, *_ = self.shape
        ids = np.ones((rows, length), np.int32)
        for row in range(rows) if self.mean else ():
            rng = np.random.default_rng([row, self.length, self.mean])
            sizes = np.ceil(rng.lognormal(np.log(self.mean) - 0.5, 1.0, length)).astype(int)
            ids[row] = 1 + np.searchsorted(np.cumsum(sizes), np.arange(length), side="right")
        return ids

    def flops(self, name: str) -> float:
        """Useful FLOPs of a pass."""
        sizes = np.concatenate([np.unique(row, return_counts=True)[1] for row in self.segments]).astype(float)
        pairs = float(np.sum(sizes * (sizes + 1) / 2))
        return (4 if name == "forward" else 10) * self.width * pairs

    def inputs(self) -> list[np.ndarray]:
        """q, k, v and the gradient of o, float32."""
        rows, length, heads, head_dim = self.shape
        rng = np.random.default_rng(0)
        counts = (heads, max(1, heads // 4), max(1, heads // 4), heads)
        return [rng.normal(size=(rows, length, count, head_dim)).astype(np.float32) for count in counts]


def add_attention(commands: Any) -> None:
    """The command line of `attention`."""
    attention = commands.add_parser(
        "attention", help="attention alone against cuDNN and PyTorch's SDPA", description=__doc__
    )
    attention.set_defaults(run=bench_attention)
    attention.add_argument("--size", choices=SIZES, default="full", help="(default: %(default)s)")
    attention.add_argument("--length", type=int, nargs="+", help="of rows (by size)")
    attention.add_argument("--head_dim", type=int, nargs="+", help="(by size)")
    attention.add_argument(
        "--mean", type=int, nargs="+", help="tokens of a document, 0: one a row (default: the size's)"
    )
    attention.add_argument("--backend", nargs="+", help="of ours (default: all that the device has)")
    attention.add_argument("--rounds", type=int, default=3, help="turns of each library (default: %(default)s)")
    attention.add_argument("--seconds", type=float, default=0.3, help="timed a pass (default: %(default)s)")
    attention.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")
    attention.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """What the command line asks for."""
    size = SIZES[options.size]
    lengths, head_dims, means = options.length or size.lengths, options.head_dim or size.head_dims, options.mean
    for length, head_dim, mean in itertools.product(lengths, head_dims, size.means if means is None else means):
        yield Case(length, head_dim, mean, size.tokens, size.width)


def bench_attention(options: argparse.Namespace) -> int:
    """Prints a table; with --side (its own child) one JSON object."""
    if options.side:
        measure, versions = (measure_jax, jax_versions) if options.side == "jax" else (measure_torch, torch_versions)
        found = {case.name: measure(case, options) for case in cases(options)}
        print(json.dumps({"versions": versions(), "cases": found}))
        return 0
    # The peer in PyTorch must find room beside nobody: jax takes three quarters of a GPU's memory unless told.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    rounds = [[child(side, sys.argv[1:]) for side in SIDES if installed(side)] for _ in range(options.rounds)]
    results = gathered(list(cases(options)), [one for turn in rounds for one in turn])
    show(results)
    write(options.json, results)
    return 0


def gathered(asked: list[Case], found: list[dict[str, Any]]) -> dict[str, Any]:
    """All measurements by case and side, with what they mean."""
    versions: dict[str, str] = {}
    for one in found:
        versions |= one.get("versions", {"error": one.get("error", "")})
    by_case = {}
    for case in asked:
        sides: dict[str, dict[str, list[Any]]] = {}
        for side, passes in (pair for one in found for pair in one.get("cases", {}).get(case.name, {}).items()):
            for name in PASSES:
                sides.setdefault(side, {}).setdefault(name, []).append(passes.get(name, passes))
        flops = {name: case.flops(name) for name in PASSES}
        documents = int(sum(row.max() for row in case.segments))
        by_case[case.name] = dataclasses.asdict(case) | {"documents": documents, "flops": flops, "seconds": sides}
    return {"versions": versions, "formula": __doc__, "cases": by_case}


def show(results: dict[str, Any]) -> None:
    """A row a case, pass and side; ratios are a peer's time over ours, medians of the rounds."""
    print("; ".join(f"{name} {value}" for name, value in results["versions"].items()))
    print("| case | pass | side | ms | TFLOP/s | x cuDNN | x SDPA |\n|---|---|---|---|---|---|---|")
    for name, case in results["cases"].items():
        for which in PASSES:
            times = {side: median(passes[which]) for side, passes in case["seconds"].items()}
            for side, seconds in times.items():
                if seconds is None:
                    print(f"| {name} | {which} | {side} | {case['seconds'][side][which][0]['error']} | | | |")
                    continue
                ratios = [peer / seconds if (peer := times.get(one)) else None for one in PEERS]
                cells = "".join(f" {ratio:.2f} |" if ratio else " |" for ratio in ratios)
                speed = case["flops"][which] / seconds / 1e12
                print(f"| {name} | {which} | {side} | {seconds * 1e3:.3f} | {speed:.3f} |{cells}")


def measure_jax(case: Case, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds of each pass of our backends, and of cuDNN on whole rows."""
    import jax
    import jax.numpy as jnp

    from hcxjax.kernels.backends import BACKENDS, Backend, Work
    from hcxjax.kernels.plan import attention_plan
    from hcxjax.kernels.target import Target

    target, scale = Target.now(), case.head_dim**-0.5
    q, k, v, do = (jnp.asarray(x, jnp.bfloat16) for x in case.inputs())

    def ours(backend: Backend) -> Callable:
        plan = jax.jit(lambda segments: attention_plan(segments, backend.tile))(jnp.asarray(case.segments))
        return lambda q, k, v: backend.run(q, k, v, plan, scale=scale, angles=None)[0]

    def whole_rows() -> Callable:
        return functools.partial(jax.nn.dot_product_attention, is_causal=True, scale=scale, implementation="cudnn")

    def seconds(attention: Callable[[], Callable]) -> dict[str, float]:
        forward = jax.jit(attention())
        _, saved = jax.jit(lambda *qkv: jax.vjp(forward, *qkv))(q, k, v)
        backward = jax.jit(lambda saved, do: saved(do))
        return {
            "forward": timed(lambda: forward(q, k, v), jax.block_until_ready, options.seconds),
            "backward": timed(lambda: backward(saved, do), jax.block_until_ready, options.seconds),
        }

    sides = {}
    for name, backend in BACKENDS.items():
        asked = name in (options.backend or BACKENDS) and (name != "reference" or case.length <= MOST_DENSE)
        if asked and backend.refusal(target, Work(case.head_dim, "bfloat16")) is None:
            sides[name] = attempted(functools.partial(seconds, functools.partial(ours, backend)))
    if target.platform == "gpu":
        sides[CUDNN] = attempted(functools.partial(seconds, whole_rows))
    return sides


def measure_torch(case: Case, options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Seconds of each pass of SDPA on whole rows, by the kernel that PyTorch picks."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    q, k, v, do = (torch.from_numpy(x).to(device, torch.bfloat16).transpose(1, 2).contiguous() for x in case.inputs())
    leaves = tuple(x.requires_grad_() for x in (q, k, v))

    def forward() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=case.head_dim**-0.5, enable_gqa=True
        )

    def wait(_: object) -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def seconds() -> dict[str, float]:
        with torch.no_grad():
            before = timed(forward, wait, options.seconds)
        o = forward()
        backward = functools.partial(torch.autograd.grad, o, leaves, do, retain_graph=True)
        return {"forward": before, "backward": timed(backward, wait, options.seconds)}

    return {SDPA: attempted(seconds)}
