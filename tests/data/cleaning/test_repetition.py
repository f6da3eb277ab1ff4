"""Measures of repetition against a count that follows the definition word by word."""

import random
from collections import Counter

import pytest

from hcxjax.data.cleaning.repetition import Repetition, repeats, word_repetition
from hcxjax.world import LANGUAGES, World


def naive(words, least):
    """The same shares, by dictionaries of tuples and sets of places."""
    total = sum(map(len, words))
    top, repeated = [], []
    for size in range(2, 11):
        grams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
        counts = Counter(grams)
        if size <= 4:
            best = max(counts, key=lambda gram: (counts[gram], sum(map(len, gram))), default=())
            chosen = [at for at, gram in enumerate(grams) if gram == best and counts[best] >= least]
        else:
            chosen = [at for at, gram in enumerate(grams) if gram in grams[:at]]
        covered = {place for at in chosen for place in range(at, at + size)}
        (top if size <= 4 else repeated).append(sum(len(words[place]) for place in covered) / total)
    return top, repeated


@pytest.mark.parametrize("seed", range(30))
def test_ngrams_are_counted_as_the_definition_says(seed):
    # Lengths tell the n-grams apart, so that the longest of several as frequent ones is one.
    draw = random.Random(seed)
    words = [chr(97 + number) * (1 + 3**number) for number in draw.choices(range(4), k=draw.randint(11, 60))]
    least = draw.choice([2, 3, 5])
    for ours, theirs in zip(word_repetition(words, least), naive(words, least), strict=True):
        assert ours == pytest.approx(theirs)


def test_texts_of_no_and_few_words_repeat_nothing():
    for words in ([], ["a"], ["a", "a"], ["a", "b"]):
        assert word_repetition(words, 2)[1] == [0.0] * 6
    assert word_repetition(["a", "a"], 2)[0] == [0.0] * 3
    assert Repetition()("").dropped is None


def test_lines_count_where_they_are_long_enough():
    assert repeats(["abc", "abc", "x", "", "x"]) == (0.5, 0.5)
    assert repeats(["abc", "abc", "x", "x"], shortest=2) == (0.5, 0.5)
    assert repeats([]) == (0.0, 0.0)


LINE = "This line is long enough to be counted as one."
PLAIN = [" ".join(f"{start}{end}" for end in ("gate", "moor", "wick", "field", "ford")) + "." for start in "abcdefghij"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n".join(PLAIN), None),
        ("\n".join([*PLAIN[:5], *[LINE] * 4]), "repetition: duplicate lines"),
        ("\n".join([*PLAIN, *["}"] * 5, *["## Remarks"] * 2]), None),
        ("\n".join([*PLAIN, "```", *[LINE] * 20, "```"]), None),
        ("\n\n".join([*PLAIN[:4], *[f"{LINE}\nAnd its second line."] * 3]), "repetition: duplicate lines"),
        (" ".join(["a word of many"] * 3 + PLAIN[0].split()), "repetition: frequent n-gram"),
        (" ".join([*PLAIN[:2], *PLAIN[:2], *PLAIN[3:7]]), "repetition: duplicate n-grams"),
    ],
)
def test_what_repeats_itself_goes_and_says_how(text, reason):
    assert Repetition()(text).dropped == reason


def test_paragraphs_are_told_from_lines():
    lines = PLAIN[:3]
    text = "\n\n".join(["\n".join(lines)] * 2)
    assert Repetition(lines=1, line_characters=1)(text).dropped == "repetition: duplicate paragraphs"


def test_a_long_document_takes_linear_time():
    text = "\n".join(World().documents("ko", count=400)) + "가나다 " * 300_000
    assert Repetition()(text).dropped == "repetition: frequent n-gram"


def test_the_world_mostly_stays():
    for language in LANGUAGES:
        texts = list(World().documents(language, count=100))
        assert sum(Repetition()(text).dropped is not None for text in texts) <= 20
    with pytest.raises(ValueError, match=r"Repetition.top is \(0.2,\)"):
        Repetition(top=(0.2,))
