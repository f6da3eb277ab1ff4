import pytest

from hcxjax.text.measures import hangul_words, measure, speeds

PIECES = [
    b"",
    "학교".encode(),
    "에서".encode(),
    "교에".encode(),
    "학".encode(),
    "서".encode(),
    b" ",
    b"\xed\x95",
    b"\x99",
    "학교에서".encode(),
]


class Scripted:
    def __init__(self, ids):
        self.ids = ids

    def encode(self, text):
        return self.ids


@pytest.mark.parametrize(
    ("ids", "cut", "crossed"),
    [([1, 2], 0, 0), ([9], 0, 1), ([4, 3, 5], 1, 1), ([7, 8, 3, 5], 1, 1)],
)
def test_words_cut_and_boundaries_crossed(ids, cut, crossed):
    counts = measure(Scripted(ids), PIECES, ["학교에서"], {"학교에서": ("학교", "에서")})
    assert (counts.words, counts.edges, counts.cut, counts.crossed) == (1, 1, cut, crossed)
    assert (counts.tokens, counts.characters, counts.bytes) == (len(ids), 4, 12)
    assert counts.fragments == (2 if 7 in ids else 0)


def test_places_are_counted_in_bytes():
    counts = measure(Scripted([4, 3, 5, 6, 1, 2]), PIECES, ["학교에서 학교에서"], {"학교에서": ("학교", "에서")})
    assert (counts.words, counts.cut, counts.crossed) == (2, 1, 1)


@pytest.mark.parametrize("ids", [[1], [2, 1], [7]])
def test_documents_that_do_not_come_back_are_counted(ids):
    counts = measure(Scripted(ids), PIECES, ["학교에서"], {"학교에서": ("학교", "에서")})
    assert (counts.documents, counts.lossy, counts.tokens, counts.words) == (1, 1, len(ids), 0)
    assert measure(Scripted([1, 2]), PIECES, ["학교에서"], {}).lossy == 0


def test_words_are_those_worth_analysing():
    assert hangul_words(["학교에서 a 가 친구", "친구"]) == ["친구", "학교에서"]


def test_speeds_are_of_every_encoder():
    timed = speeds({"a": Scripted([1]), "b": Scripted([2])}, {"a": PIECES, "b": PIECES}, ["학교"] * 10, rounds=1)
    assert timed.keys() == {"a", "b"}
    assert all(value > 0 for values in timed.values() for value in values)
