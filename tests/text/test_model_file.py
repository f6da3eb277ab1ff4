from hcxjax.text.model_file import NORMAL, Piece, read_pieces, write_pieces
from hcxjax.text.vocabulary import Vocabulary


def test_pieces_are_read_as_sentencepiece_reads_them(vocabulary):
    with open(vocabulary.path, "rb") as file:
        model = file.read()
    pieces, rest = read_pieces(model)
    assert len(pieces) == vocabulary.size
    for token in (0, 1, 20, 300, vocabulary.size - 1):
        assert pieces[token].text == vocabulary.engine._model.id_to_piece(token)
        assert pieces[token].score == vocabulary.engine._model.get_score(token)
    assert {piece.kind for piece in pieces} == {NORMAL, 2, 3, 6}  # unknown, control, byte
    assert read_pieces(write_pieces(pieces, rest)) == (pieces, rest)


def test_an_added_piece_is_used(vocabulary, tmp_path):
    with open(vocabulary.path, "rb") as file:
        pieces, rest = read_pieces(file.read())
    lowest = min(piece.score for piece in pieces)
    left, right = vocabulary.encode("q"), vocabulary.encode("z")
    (tmp_path / "m.model").write_bytes(write_pieces([*pieces, Piece("qz", lowest - 1)], rest))
    again = Vocabulary(str(tmp_path / "m.model"))
    if len(left) == len(right) == 1 and vocabulary.byte_lengths[left[0]] == 1:
        assert again.size == vocabulary.size + 1
    assert again.decode(again.encode("qz")) == "qz"
