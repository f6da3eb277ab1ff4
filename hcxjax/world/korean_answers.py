"""Demands of form in Korean, and answers that meet them or do not."""

import re
from functools import cache

from hcxjax.world import korean
from hcxjax.world.dice import Dice
from hcxjax.world.facts import SHARED, Fact, Scene
from hcxjax.world.hangul import attach
from hcxjax.world.names import Noun

OPENINGS = ("답은", "바로", "그건", "네,")
LIMITS = (8, 9)
"""Characters, spaces and marks too: the longest polite answer of one word just fits, few sentences do."""
LEAST_WORDS = 2
"""Of a sentence."""

DEMANDS = {
    "word": ("한 단어로 답해 주세요.", "한 단어로만 말해 주세요."),
    "sentence": ("온전한 문장으로 답해 주세요.", "온전한 문장으로 말해 주세요."),
    "opening": ("'{opening}'{particle} 시작해 주세요.",),
    "short": ("{most}자 안으로 답해 주세요.", "{most}자 안으로 말해 주세요."),
    "quoted": ("따옴표를 써서 답해 주세요.", "따옴표 안에 써 주세요."),
    "exclaimed": ("느낌표로 끝내 주세요.", "끝에 느낌표를 써 주세요."),
}
"""Wordings by form."""


def demand(dice: Dice, form: str, opening: str, most: int) -> str:
    """What is asked of the answer's form."""
    heard = opening.rstrip(",")
    particle = attach(heard, "으로")[len(heard) :] if opening else ""
    return dice.pick(DEMANDS[form]).format(opening=opening, particle=particle, most=most)


def tell(dice: Dice, scene: Scene, facts: list[Fact]) -> str:
    """Facts as sentences, written or polite."""
    return korean.state(dice, scene, facts, dice.pick((korean.PLAIN, korean.POLITE)))


def spellings(noun: Noun) -> tuple[str, ...]:
    """How a text may name it."""
    return (noun.korean,)


def answer(dice: Dice, form: str, relation: str, subject: Noun, value: Noun, opening: str, polite: bool) -> str:
    """An answer of a form that says `value`; polite ones end in 이에요 or 예요, others in 이다, 이야 or in nothing."""
    if form == "sentence":
        cast = {"x": subject, "v": value}
        style = korean.POLITE if polite else korean.PLAIN
        return korean.say(dice.pick(korean.RELATIONS[relation].tell), cast, style)
    ending = "이에요" if polite else dice.pick(("이다", "이야", ""))
    said = attach(value.korean, ending) if ending else value.korean
    if form == "quoted":
        said = f'"{value.korean}"{said[len(value.korean) :]}'
    if form == "opening":
        said = f"{opening} {said}"
    return said + ("!" if form == "exclaimed" else ".")


_SENTENCE = re.compile(r"[^.!?\n]+")
_POLITE = re.compile(r"(?:요|니다|니까)$")


def is_polite(text: str) -> bool:
    """Does every sentence end politely, in 해요체 or 합니다체?"""
    ends = [part.strip(" \"'”’)~") for part in _SENTENCE.findall(text)]
    return any(ends) and all(_POLITE.search(end) for end in ends if end)


def without_courtesy(text: str) -> str:
    """The text: in Korean manners are endings, not words."""
    return text


@cache
def _mention(word: str) -> re.Pattern[str]:
    """The word at the beginning of another that particles may end, unless it is a longer value: 요리사 is no 요리."""
    values = (noun.korean for pool in SHARED.values() for noun in pool)
    longer = [value[len(word) :] for value in values if value.startswith(word) and value != word]
    return re.compile(rf"(?<![가-힣]){re.escape(word)}(?!{'|'.join(longer) or '(?!)'})")


def names(text: str, noun: Noun) -> bool:
    """Does a word of `text` begin with it? Particles and endings may follow."""
    return _mention(noun.korean).search(text) is not None
