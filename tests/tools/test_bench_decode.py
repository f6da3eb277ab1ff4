"""The bench of decode attention: a tiny run gives bytes, times and their share of a copy's."""

import json

from tools.bench import main


def test_a_tiny_run_gives_numbers(tmp_path, capsys):
    path = tmp_path / "decode.json"
    asked = ["--size", "tiny", "--rows", "2", "--length", "128", "--rounds", "1", "--seconds", "0", "--json", str(path)]
    assert main(["decode", *asked]) == 0
    found = json.loads(path.read_text())
    ((name, case),) = found["cases"].items()
    assert name == "2 x 128" and case["bytes"] == 2 * (2 * 2 * 128 * 64) * 2  # k and v, layers, rows, places, width
    assert case["seconds"][0] > 0 and found["copy"][0] > 0 and found["versions"]["jax platform"] == "cpu"
    assert f"**{case['bytes'] / case['seconds'][0] / found['copy'][0]:.0%}** |" in capsys.readouterr().out
