"""Attention of one new token a row over its cache, layer after layer: bytes/s beside those of a copy in the same run.

Bytes are the keys and values of the whole cache, read once; the copy's are read and written. Every layer has a cache of
its own, as in the model, so that none is in the processor's own caches when it is read.
"""

import argparse
import functools
import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

from tools.bench_device import attempted, jax_versions, median, timed, write


class Size(NamedTuple):
    """Shapes: of the gin model 1b, or tiny."""

    rows: tuple[int, ...]
    lengths: tuple[int, ...]
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    copied: int


SIZES = {
    "full": Size((1, 8, 32), (4096, 32768), layers=18, heads=16, kv_heads=4, head_dim=128, copied=2**31),
    "tiny": Size((1, 4), (256,), layers=2, heads=4, kv_heads=1, head_dim=64, copied=2**24),
}
"""`copied` are the bytes that the copy reads."""


def add_decode(commands: Any) -> None:
    """The command line of `decode`."""
    decode = commands.add_parser("decode", help="attention over a cache", description=__doc__)
    decode.set_defaults(run=bench_decode)
    decode.add_argument("--size", choices=SIZES, default="full", help="(default: %(default)s)")
    decode.add_argument("--rows", type=int, nargs="+", help="(by size)")
    decode.add_argument("--length", type=int, nargs="+", help="of the caches, all of it written (by size)")
    decode.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    decode.add_argument("--seconds", type=float, default=0.3, help="timed a round (default: %(default)s)")
    decode.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")


def bench_decode(options: argparse.Namespace) -> int:
    """Prints a table."""
    size = SIZES[options.size]
    shapes = list(itertools.product(options.rows or size.rows, options.length or size.lengths))
    results: dict[str, Any] = {"versions": jax_versions(), "copy": [], "cases": {}}
    for _ in range(options.rounds):
        results["copy"].append(attempted(functools.partial(copied, size.copied, options.seconds)))
        for rows, length in shapes:
            case = results["cases"].setdefault(f"{rows} x {length}", {"bytes": cache_bytes(size, rows, length)})
            measure = functools.partial(seconds, size, rows, length, options.seconds)
            case.setdefault("seconds", []).append(attempted(measure))
    show(results)
    write(options.json, results)
    return 0


def show(results: dict[str, Any]) -> None:
    """A row a case; the share is of the copy's bytes/s, medians of the rounds."""
    print(json.dumps(results["versions"]))
    copy = median(results["copy"])
    print("| rows x cache | GB | ms | GB/s | of a copy |\n|---|---|---|---|---|")
    for name, case in results["cases"].items():
        taken = median(case["seconds"])
        if taken is None:
            print(f"| {name} | {case['bytes'] / 1e9:.2f} | {case['seconds'][0]['error']} | | |")
            continue
        speed = case["bytes"] / taken
        share = f"**{speed / copy:.0%}**" if copy else "no copy"
        print(f"| {name} | {case['bytes'] / 1e9:.2f} | {taken * 1e3:.3f} | {speed / 1e9:,.0f} | {share} |")
    print(f"a copy: {copy / 1e9:,.0f} GB/s" if copy else f"a copy: {results['copy'][0]}")


def cache_bytes(size: Size, rows: int, length: int) -> int:
    """Of the keys and values of all layers in bfloat16."""
    return 2 * 2 * size.layers * rows * size.kv_heads * length * size.head_dim


def copied(count: int, enough: float) -> float:
    """Bytes/s that a copy of `count` bytes reads and writes."""
    import jax
    import jax.numpy as jnp

    x = jnp.ones(count // 4, jnp.float32)
    return 2 * count / timed(functools.partial(jax.jit(jnp.negative), x), jax.block_until_ready, enough)


def seconds(size: Size, rows: int, length: int, enough: float) -> float:
    """Of one token's attention in all layers; what a layer says is the next one's query."""
    import jax
    import jax.numpy as jnp

    from hcxjax.kernels.cached import cached_attention
    from hcxjax.models.attention import KVCache

    shape = (size.layers, rows, size.kv_heads, length, size.head_dim)
    k_key, v_key, q_key = jax.random.split(jax.random.key(0), 3)
    cache = KVCache(*(jax.random.normal(key, shape, jnp.bfloat16) for key in (k_key, v_key)))
    q_BTNH = jax.random.normal(q_key, (rows, 1, size.heads, size.head_dim), jnp.bfloat16)
    positions_BT = jnp.full((rows, 1), length - 1)

    @jax.jit
    def token(cache: KVCache, q_BTNH: jax.Array) -> jax.Array:
        def layer(number: jax.Array, q_BTNH: jax.Array) -> jax.Array:
            read = functools.partial(cache.part, number, "bfloat16")
            return cached_attention(q_BTNH, positions_BT, read, length, size.head_dim**-0.5)

        return jax.lax.fori_loop(0, size.layers, layer, q_BTNH)

    return timed(lambda: token(cache, q_BTNH), jax.block_until_ready, enough)
