"""Text that may be shown, against the whole text cut where a stop string first begins."""

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hcxjax.inference.text_stream import TextStream


class Bytes:
    """A vocabulary whose ids are numbers of given byte strings."""

    def __init__(self, pieces: list[bytes]):
        self.pieces = pieces

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token]

    def encode(self, text: str) -> bytes:
        return text.encode()

    def decode(self, ids: bytes) -> str:
        return ids.decode()


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in itertools.pairwise(edges)]


def oracle(text: str, stop: list[str]) -> tuple[str, bool]:
    found = [text.index(string) for string in stop if string in text]
    return text[: min(found, default=len(text))], bool(found)


few = st.text("ab가나👩", max_size=30)
strings = st.lists(st.text("ab가나👩", min_size=1, max_size=4), max_size=3)


@given(few, strings, st.lists(st.integers(0, 200), max_size=20))
@example("aaab", ["aab"], [1, 2, 3])
@example("abcd", ["abcd", "bc"], [1, 2, 3])
@example("abcx", ["abcd", "bc"], [1, 2, 3])
@example("abab나", ["ab나", "b나"], [1, 3, 5, 6])
@example("안녕하세요 👋🏽", ["세요"], list(range(30)))
@example("안녕하세요 👋🏽", [], list(range(30)))
def test_it_is_the_whole_text_cut_at_the_first_stop(text, stop, cuts):
    pieces = split(text.encode(), cuts)
    stream = TextStream(Bytes(pieces), tuple(stop))
    expected, stopped = oracle(text, stop)
    shown = ""
    for token in range(len(pieces)):
        shown += stream.push(token)
        assert expected.startswith(shown)
    shown += stream.flush()
    assert (shown, stream.stopped) == (expected, stopped)


def test_nothing_is_held_back_without_need():
    stream = TextStream(Bytes([b"one ", b"tw", b"o", b" st", b"op", b"p", b"stop", b"more"]), ("stopped", "stop."))
    assert [stream.push(token) for token in range(8)] == ["one ", "tw", "o", " ", "", "", "stopp", "stopmore"]
    assert not stream.stopped
    assert stream.flush() == ""


def test_nothing_is_shown_after_a_stop():
    stream = TextStream(Bytes([b"yes##", b"#no", b"more"]), ("###",))
    assert [stream.push(0), stream.push(1)] == ["yes", ""]
    assert stream.stopped
    assert stream.push(2) + stream.flush() == ""


def test_a_stop_that_begins_earlier_is_waited_for():
    stream = TextStream(Bytes([b"x", b"abc", b"d"]), ("abcd", "bc"))
    assert [stream.push(0), stream.push(1)] == ["x", ""]
    assert not stream.stopped  # "abcd" begins before "bc", and may still come
    assert stream.push(2) == ""
    assert stream.stopped
    ended = TextStream(Bytes([b"x", b"abc"]), ("abcd", "bc"))
    assert ended.push(0) + ended.push(1) + ended.flush() == "xa"
    assert ended.stopped


def test_an_empty_stop_is_refused():
    with pytest.raises(ValueError, match="stop has an empty string"):
        TextStream(Bytes([]), ("a", ""))


def test_no_more_is_kept_than_a_stop_is_long():
    stop = "ab" * 4 + "c"
    stream = TextStream(Bytes([b"ab" * 5]), (stop,))
    shown = 0
    for _ in range(1000):
        shown += len(stream.push(0))
        assert len(stream._held) < len(stop)
    assert shown + len(stream.flush()) == 10_000


def test_a_stop_is_looked_for_in_the_form_that_the_model_writes():
    class Composed(Bytes):
        def encode(self, text: str) -> bytes:
            return text.replace("e\u0301", "é").encode()

    stream = TextStream(Composed([b"caf", "é".encode()]), ("e\u0301",))
    assert stream.push(0) + stream.push(1) == "caf"
    assert stream.stopped
