"""How a vocabulary treats a text: tokens, words cut inside a morpheme, pieces across one, bytes, speed."""

import dataclasses
import itertools
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

_WORD = re.compile("[가-힣]{2,}")


class Encoder(Protocol):
    """What is measured: `Vocabulary`, or any engine."""

    def encode(self, text: str) -> Sequence[int]: ...


@dataclasses.dataclass
class Counts:
    """Sums over documents.

    Attributes:
      fragments: tokens that are no whole characters: bytes of a character without a piece.
      words: Hangul words of two syllables or more.
      cut: of these, how many are cut inside a morpheme.
      edges: morpheme boundaries inside such words.
      crossed: of these, how many lie inside a token: a piece matched across them.
      lossy: documents whose ids stand for other text; their words are not judged.
    """

    documents: int = 0
    characters: int = 0
    bytes: int = 0
    tokens: int = 0
    fragments: int = 0
    words: int = 0
    cut: int = 0
    edges: int = 0
    crossed: int = 0
    lossy: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)))


def measure(
    encoder: Encoder, pieces: Sequence[bytes], texts: Sequence[str], morphemes: Mapping[str, tuple[str, ...]]
) -> Counts:
    """Counts over `texts`.

    Args:
      pieces: the bytes of each id.
      morphemes: Hangul word → its morphemes; words that it lacks are not judged.
    """
    fragments = [bool(piece) and not _whole(piece) for piece in pieces]
    total = Counts()
    for text in texts:
        ids, data = encoder.encode(text), text.encode()
        total += Counts(1, len(text), len(data), len(ids), sum(fragments[token] for token in ids))
        if b"".join([pieces[token] for token in ids]) != data:
            total += Counts(lossy=1)
            continue
        ends = itertools.accumulate(len(pieces[token]) for token in ids)
        total += _words(text, frozenset(ends), morphemes)
    return total


def _words(text: str, token_ends: frozenset[int], morphemes: Mapping[str, tuple[str, ...]]) -> Counts:
    counts, start, place = Counts(), 0, 0
    for found in _WORD.finditer(text):
        if (split := morphemes.get(found.group())) is None:
            continue
        place += len(text[start : found.start()].encode())
        start = found.start()
        length = 3 * len(found.group())  # every syllable is three bytes of UTF-8
        edges = {place + 3 * sum(map(len, split[:number])) for number in range(1, len(split))}
        inside = (
            {end for end in token_ends if place < end < place + length}
            if length > 60
            else token_ends & set(range(place + 1, place + length))
        )
        counts.words += 1
        counts.cut += bool(inside - edges)
        counts.edges += len(edges)
        counts.crossed += len(edges - inside)
    return counts


def _whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def hangul_words(texts: Sequence[str]) -> list[str]:
    """The distinct Hangul words of two syllables or more, sorted."""
    return sorted({word for text in texts for word in _WORD.findall(text)})


def speeds(
    encoders: Mapping[str, Encoder], pieces: Mapping[str, Sequence[bytes]], texts: Sequence[str], rounds: int = 5
) -> dict[str, tuple[float, float, float]]:
    """Name → megabytes a second of (the first round of encoding, the median of the later ones, decoding).

    Encoders take turns, round by round, so that a noisy machine slows all alike. One thread each, one text a call. The
    first round meets every word anew; later ones find it in whatever the encoder keeps.
    """
    size = sum(len(text.encode()) for text in texts) / 1e6
    times: dict[str, list[float]] = {name: [] for name in encoders}
    back: dict[str, list[float]] = {name: [] for name in encoders}
    for _ in range(rounds + 1):
        for name, encoder in encoders.items():
            start = time.perf_counter()
            encoded = [encoder.encode(text) for text in texts]
            times[name].append(time.perf_counter() - start)
            start = time.perf_counter()
            for ids in encoded:
                b"".join([pieces[name][token] for token in ids]).decode(errors="replace")
            back[name].append(time.perf_counter() - start)
    return {
        name: (size / times[name][0], size / statistics.median(times[name][1:]), size / statistics.median(back[name]))
        for name in encoders
    }
