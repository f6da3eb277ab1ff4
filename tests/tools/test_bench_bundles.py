"""Schedules are read out of what libtpu writes down."""

import importlib.metadata
import importlib.util
import json
import subprocess
import types

import pytest

from tools import bench_bundles
from tools.bench import parser
from tools.bench_bundles import FEWEST, Case, cuts_of, measure, rows_of, tiles_of

LISTING = """\
= control target key start
LH: loop header
= control target key end

     0   :  { %s1 = smov 0 }
   0x1 LB: > { %p = scmp.eq }
   0x2   : > { %s = sbr.rel (%p) target bundleno = 9 (0x9), region = 4 }
   0x3   : >> { %v = vmatmul }
   0x4 PF: > { %v = vmatmul }
   0x5   :  { %e = halt }
"""


def dump(folder, kernel, bundles, listing):
    """Files as libtpu names them, those that must not be taken for them included."""
    usage = "\n".join(" ".join(map(str, row)) for row in bundles)
    for number, name in ((64, "pre-delay"), (66, "final")):
        text = (
            f"== CAPACTIY:\nMXU, VALU, VSTORE:SPILL\n4 4 1\n== UTILIZATION:\n{usage if name == 'final' else '9 9 9'}\n"
        )
        (folder / f"17-{kernel}.1-{number}-{name}_hlo-static-per-bundle-utilization.txt").write_text(text)
    (folder / f"17-{kernel}.1-68-final_bundles.txt").write_text(listing)
    (folder / f"17-{kernel}.1-67-schedule-analysis_final_bundles.txt").write_text("")
    (folder / f"18-{kernel}_other.1-68-final_bundles.txt").write_text("")


def test_code_is_cut_where_it_branches():
    assert cuts_of(LISTING) == [1, 3, 4]


def test_span_is_from_first_to_last_use_of_the_matrix_unit(tmp_path):
    """In code of its own; a few uses elsewhere, of a transpose, are no tile."""
    idle, busy = [0, 1, 1], [1, 0, 0]
    first = [idle, busy, idle] + [busy] * FEWEST + [idle]
    second = [busy] * (FEWEST - 1)
    third = [busy, busy] * FEWEST + [[0, 0, 0]]
    lines = [f"   {hex(at)}   :  {{ %v = vmatmul }}" for at in range(len(first + second + third))]
    for at in (len(first), len(first + second)):
        lines[at] = f"   {hex(at)} PF: > {{ %v = vmatmul }}"
    dump(tmp_path, "attention_dq", first + second + third, "\n".join(lines).replace("0x0 ", "0 "))
    assert tiles_of(tmp_path, "attention_dq") == [
        {"span": FEWEST + 2, "spills": 3},
        {"span": 2 * FEWEST, "spills": 0},
    ]


def test_table():
    tile = {"span": 90, "spills": 3}
    ours = {"temporary_mib": 10.0, "tiles": {"forward": [tile, {"span": 80, "spills": 1}]}}
    splash = {"temporary_mib": 20.0, "tiles": {"forward": [{"span": 100, "spills": 7}]}}
    assert rows_of("128, 4,096", {"pallas_tpu": ours, "splash": splash}) == [
        "| 128, 4,096 | forward | 90 | 80 | 100 | 0.80 to 0.90 | 3, 1 | 7 |",
        "| 128, 4,096 | temporary MiB | 10.0 | | 20.0 | 0.50 | | |",
    ]


def test_command_writes_a_page_a_chip(monkeypatch, tmp_path, capsys):
    tiles = {kernel: [{"span": 9, "spills": 0}] for kernel in ("forward", "dq", "dkv")}
    both = {side: {"temporary_mib": 1.0, "tiles": tiles} for side in ("pallas_tpu", "splash")}
    both["pallas_tpu"]["tiles"] = {kernel: one * 2 for kernel, one in tiles.items()}
    monkeypatch.setattr(bench_bundles, "measure", lambda case: both[case.backend])
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2")
    options = parser().parse_args(["bundles", "--chip", "v6e", "--head_dim", "64", "--json", str(tmp_path / "new")])
    assert options.run(options) == 0
    page = json.loads((tmp_path / "new" / "v6e.json").read_text())
    assert page == {"libtpu": "1.2", "cases": {"64 x 4096": both, "64 x 32768": both}}
    assert "| 64, 32,768 | dkv | 9 | 9 | 9 | 1.00 to 1.00 | 0, 0 | 0 |" in capsys.readouterr().out


def test_what_the_compiler_says_is_passed_on(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    failed = types.SimpleNamespace(returncode=1, stderr="RESOURCE_EXHAUSTED: ran out of vmem")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(RuntimeError, match=r"head_dim=64.*ran out of vmem"):
        measure(Case("v5e", "splash", 64))


def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"libtpu.* is not installed"):
        measure(Case("v5e", "splash", 64))
