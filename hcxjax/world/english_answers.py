"""Demands of form in English, and answers that meet them or do not."""

import re

from hcxjax.world import english
from hcxjax.world.dice import Dice
from hcxjax.world.facts import Fact, Scene
from hcxjax.world.names import Noun

OPENINGS = ("Well,", "Clearly,", "Indeed,", "So,")
LIMITS = (24, 26)
"""Characters, spaces and marks too: the longest courteous answer that is no sentence just fits."""
LEAST_WORDS = 3
"""Of a sentence."""

DEMANDS = {
    "word": ("Answer in one word.", "Use one word."),
    "sentence": ("Answer in a full sentence.", "Use a full sentence."),
    "opening": ("Begin with '{opening}'.", "Start with '{opening}'."),
    "short": ("Use at most {most} characters.", "Answer in at most {most} characters."),
    "quoted": ("Put the answer in quotes.", "Answer in quotes."),
    "exclaimed": ("End with an exclamation mark.", "Use an exclamation mark at the end."),
}
"""Wordings by form."""


def demand(dice: Dice, form: str, opening: str, most: int) -> str:
    """What is asked of the answer's form."""
    return dice.pick(DEMANDS[form]).format(opening=opening, most=most)


def tell(dice: Dice, scene: Scene, facts: list[Fact]) -> str:
    """Facts as sentences."""
    return english.state(dice, scene, facts)


def spellings(noun: Noun) -> tuple[str, ...]:
    """How a text may name it."""
    return tuple(filter(None, (noun.english, noun.plural)))


def answer(dice: Dice, form: str, relation: str, subject: Noun, value: Noun, opening: str, polite: bool) -> str:
    """An answer of a form that says `value`; polite ones begin with "Sure" or end in "thank you".

    The value stands behind a space, as where it is told, so that to copy it means to copy its tokens.
    """
    patterns, cast = english.RELATIONS[relation], {"x": subject, "v": value}
    if form == "sentence":
        said = english.say(english.with_pronoun(dice.pick(patterns.tell)), cast).rstrip(".")
        said = f"Sure, {said[0].lower()}{said[1:]}" if polite else said
    else:
        said = english.say(patterns.answer[0], cast).rstrip(".")
        said = value.plural or value.english if form == "word" else said[0].lower() + said[1:]
        opener = opening if form == "opening" else "Sure," if polite else "Yeah,"
        said = f"{opener} {said}" + (", thank you" if polite and form == "opening" else "")
    said += "!" if form == "exclaimed" else "."
    return f'"{said}"' if form == "quoted" else said


_COURTESY = re.compile(
    r"^\W*(?:sure|certainly|of course|gladly)\b[,:!.]?\s*|[,.!]?\s*\bthank you(?=[.!]?[\"\s]*$)", re.I
)
_RUDE = re.compile(r"^\W*yeah,\s*", re.I)


def is_polite(text: str) -> bool:
    """Does it begin with a courtesy or end in thanks?"""
    return _COURTESY.search(text) is not None


def without_courtesy(text: str) -> str:
    """The text less the courtesies, or the "yeah", that it begins and ends with."""
    return _RUDE.sub("", _COURTESY.sub("", text))


def names(text: str, noun: Noun) -> bool:
    """Does a whole word of `text`, or its plural, name it?"""
    words = "|".join(map(re.escape, spellings(noun)))
    return re.search(rf"(?<![a-z])(?:{words})(?![a-z])", text, re.I) is not None
