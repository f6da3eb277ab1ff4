"""The TPU attention kernels beside splash, compiled for chips that are not there: `python -m tools.bench bundles`.

libtpu (pip install 'jax[tpu]') compiles on any machine and writes down the instruction words of a kernel, called
bundles. Counted are those from the first to the last that uses the matrix unit, in the code that computes one tile, and
the registers that are spilled there; and memory, of a forward and backward pass. A schedule compares kernels; it is no
time, since words wait for memory and for each other.
"""

import argparse
import dataclasses
import importlib.metadata
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

CHIPS = {"v5e": "v5e:4x4", "v5p": "v5p:2x2x1", "v6e": "v6e:4x4", "TPU7x": "TPU7x:2x2x1"}
"""Name → the smallest topology that libtpu describes, of which one chip is used."""

KERNELS = {
    "pallas_tpu": {"forward": "attention_forward", "dq": "attention_dq", "dkv": "attention_dkv"},
    "splash": {"forward": "splash_mha_fwd", "dq": "splash_mha_dq", "dkv": "splash_mha_dkv"},
}
"""By backend, what the names of its kernels contain."""

FEWEST = 8
"""Bundles that use the matrix unit where a tile is computed; transposes use it in a few."""


@dataclasses.dataclass(frozen=True)
class Case:
    """Attention that is compiled: 32,768 tokens, four query heads to a KV head."""

    chip: str
    backend: str
    head_dim: int
    length: int = 4096
    dtype: str = "bfloat16"
    tile: tuple[int, int] = (512, 512)
    heads: int = 8
    kv_heads: int = 2


def add_bundles(commands: Any) -> None:
    """The command line of `bundles`."""
    bundles = commands.add_parser("bundles", help="schedules and memory of TPU kernels beside splash's, without a TPU")
    bundles.add_argument("--chip", nargs="+", choices=CHIPS, default=list(CHIPS), help="(default: all)")
    bundles.add_argument("--head_dim", type=int, nargs="+", default=[64, 128], help="(default: %(default)s)")
    bundles.add_argument("--length", type=int, nargs="+", default=[4096, 32768], help="(default: %(default)s)")
    bundles.add_argument("--tile", type=int, nargs=2, default=[512, 512], metavar=("QUERIES", "KEYS"))
    bundles.add_argument("--json", type=Path, metavar="FOLDER", help="write CHIP.json here")
    bundles.set_defaults(run=bench_bundles)


def bench_bundles(options: argparse.Namespace) -> int:
    """Prints a table for each chip."""
    for chip in options.chip:
        print(f"| {chip}: head dim, length | kernel | masked tile | plain tile | splash | ratio | spills | splash |")
        print("|---|---|---|---|---|---|---|---|")
        cases = {}
        for head_dim in options.head_dim:
            for length in options.length:
                both = {side: measure(Case(chip, side, head_dim, length, tile=tuple(options.tile))) for side in KERNELS}
                cases[f"{head_dim} x {length}"] = both
                print("\n".join(rows_of(f"{head_dim}, {length:,}", both)), flush=True)
        if options.json:
            options.json.mkdir(parents=True, exist_ok=True)
            page = {"libtpu": importlib.metadata.version("libtpu"), "cases": cases}
            (options.json / f"{chip}.json").write_text(json.dumps(page, indent=1) + "\n", encoding="utf-8")
    return 0


def rows_of(name: str, both: dict[str, Any]) -> list[str]:
    """Lines of the table."""
    ours, splash = (both[side] for side in KERNELS)
    lines = []
    for kernel, (masked, plain) in ours["tiles"].items():
        (theirs,) = splash["tiles"][kernel]
        ratios = " to ".join(f"{tile['span'] / theirs['span']:.2f}" for tile in (plain, masked))
        lines.append(
            f"| {name} | {kernel} | {masked['span']:,} | {plain['span']:,} | {theirs['span']:,} | {ratios} "
            f"| {masked['spills']}, {plain['spills']} | {theirs['spills']} |"
        )
    ours, theirs = (side["temporary_mib"] for side in (ours, splash))
    lines.append(f"| {name} | temporary MiB | {ours:,.1f} | | {theirs:,.1f} | {ours / theirs:.2f} | | |")
    return lines


def measure(case: Case, timeout: float = 600) -> dict[str, Any]:
    """Compiles in a process of its own, because libtpu reads its settings once.

    Returns: temporary_mib, the memory beside inputs and outputs; tiles, by kernel the places in its code that compute a
      tile, in order (ours: masked, plain), each with its span in bundles and its spills.
    Raises:
      ImportError: there is no libtpu.
      RuntimeError: it did not compile; the message ends with the compiler's.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise ImportError("libtpu, which compiles for TPUs, is not installed: pip install 'jax[tpu]'")
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder}",
        }
        call = [sys.executable, "-m", "tools.bench_bundles", json.dumps(dataclasses.asdict(case))]
        child = subprocess.run(call, env=os.environ | settings, capture_output=True, text=True, timeout=timeout)
        if child.returncode:
            raise RuntimeError(f"{case}: {child.stderr[-2000:]}")
        tiles = {kernel: tiles_of(Path(folder), name) for kernel, name in KERNELS[case.backend].items()}
        return {**json.loads(child.stdout.splitlines()[-1]), "tiles": tiles}


def tiles_of(folder: Path, kernel: str) -> list[dict[str, int]]:
    """Span and spills of each stretch of a kernel's code, free of branches, that computes a tile."""
    suffix = "final_hlo-static-per-bundle-utilization.txt"
    (usage,) = (file for file in folder.glob(f"*{kernel}*-{suffix}") if "schedule-analysis" not in file.name)
    run = re.sub(rf"-\d+-{suffix}$", "", usage.name)
    (listing,) = (
        file for file in folder.iterdir() if re.fullmatch(re.escape(run) + r"-\d+-final_bundles\.txt", file.name)
    )
    units, used = usage_of(usage.read_text(encoding="utf-8"))
    cuts = cuts_of(listing.read_text(encoding="utf-8"))
    matrix, spill = units.index("MXU"), units.index("VSTORE:SPILL")
    tiles = []
    for start, stop in zip([0, *cuts], [*cuts, len(used)], strict=True):
        busy = [at for at in range(start, stop) if used[at][matrix]]
        if len(busy) >= FEWEST:
            spills = sum(used[at][spill] for at in range(start, stop))
            tiles.append({"span": busy[-1] - busy[0] + 1, "spills": spills})
    return tiles


def usage_of(text: str) -> tuple[list[str], list[list[int]]]:
    """(units of the chip, by bundle how many of each it uses)."""
    lines = text.splitlines()
    units = re.split(r",\s*", next(line for line in lines if line.startswith("MXU")))
    rows = [[int(count) for count in line.split()] for line in lines[lines.index("== UTILIZATION:") + 1 :]]
    return units, [row for row in rows if row]


def cuts_of(text: str) -> list[int]:
    """Numbers of the bundles before which control may come from elsewhere, or behind which it may leave."""
    cuts = set()
    for address, label, rest in re.findall(r"^ *(0x[0-9a-f]+|0) +(\w\w)? *:(.*)$", text, re.MULTILINE):
        number = int(address, 16)
        cuts |= {number} if label else set()
        cuts |= {number + 1} if "sbr" in rest else set()
    return sorted(cuts - {0})


def compiled(case: Case) -> dict[str, float]:
    """Forward and backward, from the layout of the models to that of the models."""
    import jax
    from jax.experimental import topologies

    from hcxjax.kernels.backends import BACKENDS
    from hcxjax.kernels.plan import Tile, attention_plan

    device = topologies.get_topology_desc(CHIPS[case.chip], platform="tpu").devices[0]
    sharding = jax.sharding.SingleDeviceSharding(device)
    rows = math.ceil(32768 / case.length)

    def shape(*sizes: int, dtype: str = case.dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((rows, case.length, *sizes), dtype, sharding=sharding)

    def run(q_BTNH, k_BSKH, v_BSKH, do_BTNH, ids_BT):
        plan = attention_plan(ids_BT, Tile(*case.tile))
        kernel = BACKENDS[case.backend].run

        def attend(q_BTNH, k_BSKH, v_BSKH):
            return kernel(q_BTNH, k_BSKH, v_BSKH, plan, scale=case.head_dim**-0.5, angles=None)[0]

        o_BTNH, backward = jax.vjp(attend, q_BTNH, k_BSKH, v_BSKH)
        return o_BTNH, backward(do_BTNH)

    q, kv = shape(case.heads, case.head_dim), shape(case.kv_heads, case.head_dim)
    memory = jax.jit(run).lower(q, kv, kv, q, shape(dtype="int32")).compile().memory_analysis()
    assert memory is not None, "libtpu tells"
    return {"temporary_mib": round(memory.temp_size_in_bytes / 2**20, 2)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    print(json.dumps(compiled(Case(**given))))
