"""The bench of the head's memory: it compiles, and fewer logits at a time take less."""

import json

from tools.bench import main


def test_memory_falls_with_the_chunk(tmp_path, capsys):
    path = tmp_path / "head.json"
    asked = ["--length", "1024", "--vocabulary", "4096", "--width", "8", "--chunk", "256", "32", "--json", str(path)]
    assert main(["head", *asked]) == 0
    taken = json.loads(path.read_text())["temporary_bytes"]
    assert list(taken) == ["whole, autodiff", "1,024", "256", "32"]
    logits = 4 * 1024 * 4096
    assert taken["whole, autodiff"] >= taken["1,024"] >= logits
    assert taken["256"] < logits < 3 * taken["256"] and taken["32"] < logits / 8
    assert f"| 32 | {taken['32'] / 2**30:.3f} | {taken['32'] / logits:.3f} |" in capsys.readouterr().out
