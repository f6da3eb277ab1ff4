"""Questions with one true continuation, to measure what a model has learnt from documents it has not seen.

Chance is 1/2 for particles and 1/3 for facts: the true answers are spread evenly over the forms of a particle, or over
the order in which the candidates are first mentioned.
"""

import re
from dataclasses import dataclass
from functools import cache

from hcxjax.world import code, english, korean
from hcxjax.world.dice import Dice
from hcxjax.world.document import can_ask_who, write
from hcxjax.world.facts import Fact, Scene, sample_scene
from hcxjax.world.hangul import PARTICLES
from hcxjax.world.names import PEOPLE, PLACES

PROBES = ("particle", "fact_ko", "fact_en", "fact_code")


@dataclass(frozen=True)
class Probe:
    """A text broken off before a word that the text decides.

    Attributes:
      prompt: what the model has read; `prompt + answer` is a beginning of natural text.
      answer: the true continuation.
      alternatives: false continuations of the same form.
    """

    kind: str
    language: str
    prompt: str
    answer: str
    alternatives: tuple[str, ...]


_ANSWERS = tuple(form for key in ("은", "이", "을", "과", "으로") for form in PARTICLES[key])
"""Of particle probes, in turn: a model that only knows which form of a particle is the more frequent is at chance."""
_OTHER_FORM = {
    form: other for pair in zip(_ANSWERS[::2], _ANSWERS[1::2], strict=True) for form, other in (pair, pair[::-1])
}


@cache
def _name_and_particle(split: str) -> re.Pattern[str]:
    names = "|".join(noun.korean for noun in (*PEOPLE[split], *PLACES[split]))
    return re.compile(rf"(?<![가-힣])(?:{names})({'|'.join(_OTHER_FORM)})(?= )")


_TRIALS = 10_000
"""Documents looked through for one particle probe; the rarest answer is in one of a hundred or so."""


def _probe_particle(seed: int, split: str, number: int, trial: int) -> Probe | None:
    """A document up to a name that it mentions for the first time, where the name takes a particle."""
    key = (seed, split, "particle", f"{number}.{trial}")
    text = write(korean, Dice(*key), sample_scene(seed, split, number * _TRIALS + trial))
    wanted = _ANSWERS[number % len(_ANSWERS)]
    for match in _name_and_particle(split).finditer(text):
        prompt, answer = text[: match.start(1)], match[1]
        name = match[0][: -len(answer)]
        if answer == wanted and text.index(name) == match.start() and match.start():
            return Probe("particle", "ko", prompt, answer, (_OTHER_FORM[answer],))
    return None


def _first_mention(text: str, word: str) -> int:
    """Where `word` first stands in a text, not as a part of another."""
    match = re.search(rf"(?<!\w){re.escape(word)}(?![a-z0-9])", text)
    assert match
    return match.start()


_FORMS_OF_THREE = ("roster", "festival", "list")


def _tell_and_ask(
    kind: str, key: tuple, scene: Scene, facts: tuple[Fact, ...]
) -> tuple[str, list[tuple[str, str, str]]]:
    """A text; and for each fact the question that goes on from it, the answer, and how the text spells the answer."""
    dice = Dice(*key)
    if kind == "fact_code":
        text, pattern = code.define(dice, scene)
        values = [code.literal(scene.cast[fact.value]) for fact in facts]
        questions = [f"\nassert {code.read(scene, fact, pattern)} ==" for fact in facts]
        return text, list(zip(questions, values, values, strict=True))
    language = korean if kind == "fact_ko" else english
    text = language.tell(dice, scene)
    who = dice.chance(0.4) and can_ask_who(language, scene, facts[0])
    asked = []
    for fact in facts:
        noun = scene.fillers(fact)[not who]
        word = noun.korean if language is korean else noun.plural or noun.english
        exchange = language.ask(Dice(*key, "question"), scene, fact, who)
        end = exchange.rest.lower().index(word.lower()) + len(word)
        question = f"\n{language.QUESTION} {exchange.question}\n{language.ANSWER} {exchange.lead}".rstrip()
        asked.append((question, exchange.rest[:end], word))
    return text, asked


def _probe_fact(kind: str, seed: int, split: str, number: int) -> Probe:
    """A text about three people and a question whose answer is one of three words in it."""
    forms = ("roster", "list") if kind == "fact_code" else _FORMS_OF_THREE
    scene = sample_scene(seed, split, number, forms[number // 3 % len(forms)])
    key = (seed, split, kind, number)
    relation = Dice(*key, "relation").pick([fact.relation for fact in scene.facts if len(scene.rivals(fact)) == 3])
    facts = tuple(fact for fact in scene.facts if fact.relation == relation)
    text, asked = _tell_and_ask(kind, key, scene, facts)
    asked.sort(key=lambda candidate: _first_mention(text, candidate[2]))
    question, answer, _ = asked.pop(number % 3)
    language = "code" if kind == "fact_code" else kind.removeprefix("fact_")
    return Probe(kind, language, text + question, f" {answer}", tuple(f" {other}" for _, other, _ in asked))


def pose_probes(seed: int, kind: str, count: int, split: str) -> list[Probe]:
    """See `World.probes`."""
    if kind != "particle":
        return [_probe_fact(kind, seed, split, number) for number in range(count)]
    return [
        next(filter(None, (_probe_particle(seed, split, number, trial) for trial in range(_TRIALS))))
        for number in range(count)
    ]
