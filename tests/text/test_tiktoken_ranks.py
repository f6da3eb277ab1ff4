import base64
import os

import pytest

from hcxjax.text.tiktoken_ranks import TiktokenEngine

pytest.importorskip("tiktoken")
RANKS = [bytes((byte,)) for byte in range(256)] + [b"he", b"ll", b"hell", b"hello", "가".encode()[:2], "가".encode()]


@pytest.mark.parametrize("form", ["js", "tiktoken"])
def test_ranks_of_both_forms_are_read(tmp_path, form):
    path = tmp_path / f"ranks.{form}"
    coded = [base64.b64encode(piece).decode() for piece in RANKS]
    if form == "js":
        pattern = r"\\p{L}+|[^\\p{L}]+"
        packed = f"! 0 {' '.join(coded[:200])}\\n! 200 {' '.join(coded[200:])}"
        path.write_text(f'var x = {{"pat_str":"{pattern}","special_tokens":{{}},"bpe_ranks":"{packed}"}};')
    else:
        path.write_text("\n".join(f"{piece} {rank}" for rank, piece in enumerate(coded)))
    engine = TiktokenEngine(str(path))
    assert list(engine.encode("hello가")) == [259, 261]
    assert b"".join(engine.pieces[token] for token in engine.encode("hello 가나!")).decode() == "hello 가나!"


def test_a_file_of_another_kind_is_named(tmp_path):
    (tmp_path / "x.tiktoken").write_text("no ranks here at all")
    with pytest.raises(ValueError, match="no file of tiktoken ranks"):
        TiktokenEngine(str(tmp_path / "x.tiktoken"))


@pytest.mark.skipif("HCXJAX_CL100K" not in os.environ, reason="HCXJAX_CL100K names no file of cl100k_base's ranks")
def test_cl100k_is_cl100k():
    engine = TiktokenEngine(os.environ["HCXJAX_CL100K"])
    assert list(engine.encode("hello world")) == [15339, 1917]
    assert len(engine.pieces) == 100_256
