import pytest

from hcxjax.text.model_file import Piece, read_pieces, write_pieces
from hcxjax.text.sentencepiece_engine import SentencePieceEngine


@pytest.fixture(scope="module")
def parts(vocabulary):
    with open(vocabulary.path, "rb") as file:
        return read_pieces(file.read())


@pytest.mark.parametrize("piece", ["a▁b", "a▁", "x\n", "1▁", "12", "a1", "-\n▁x"])
def test_text_is_not_cut_where_a_piece_runs_across(parts, piece):
    pieces, rest = parts
    assert SentencePieceEngine(write_pieces(pieces, rest), "m")._cuts
    engine = SentencePieceEngine(write_pieces([*pieces, Piece(piece, -1e6)], rest), "m")
    assert engine._cuts == (piece == "-\n▁x")  # a mark with what follows its line end is one part anyhow


def test_what_is_known_is_bounded_and_forgotten_as_a_whole(parts, monkeypatch):
    monkeypatch.setattr("hcxjax.text.sentencepiece_engine._KNOWN_PARTS", 10)
    engine = SentencePieceEngine(write_pieces(*parts), "m")
    text = " ".join(f"word{letter}" for letter in "abcdefghijklmnopqrstuvwxyz") + " " + "x" * 100
    for _ in range(2):
        for word in text.split(" "):
            assert engine.encode(word) == engine.encode_whole(word)
            assert len(engine._known) <= 10
    assert engine.encode(text) == engine.encode_whole(text)


def test_a_model_that_changes_its_text_is_refused(tmp_path):
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d"] * 5),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    with pytest.raises(ValueError, match="normalises its text"):
        SentencePieceEngine(model.getvalue(), "m")
