"""Instructions: a short telling, a question about it, and a demand of form; whether an answer is right can be checked.

The value that is asked for is a word that every split knows, so what is new about a held-out instruction is who it is
about. Some tell of one trait, some of two, some of two people, and then the answer depends on whom the question names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType

from hcxjax.world import english, english_answers, korean, korean_answers
from hcxjax.world.dice import Dice
from hcxjax.world.facts import SHARED, Fact, Scene
from hcxjax.world.names import PEOPLE, Noun

FORMS = ("word", "sentence", "opening", "short", "quoted", "exclaimed")
ASKED = ("job", "food", "color", "hobby", "pet")
"""Relations that are asked about: their values are one word or two that every split shares."""
_TELLERS = {"ko": korean, "en": english}
ANSWERERS: Mapping[str, ModuleType] = {"ko": korean_answers, "en": english_answers}
"""How answers are written and read in each language."""


@dataclass(frozen=True)
class Instruction:
    """A request whose answers can be judged.

    Attributes:
      language: 'ko' or 'en'.
      prompt: what the model is given: telling, question and demand.
      relation: what is asked for, one of `ASKED`.
      subject: of whom.
      value: the true answer.
      rivals: every other value of the relation; an answer that names one of them is not true.
      told: those of the rivals that the telling mentions, of somebody else.
      form: of the answer, one of `FORMS`.
      opening: what it has to begin with, where the form is 'opening'.
      most: characters that it may have, where the form is 'short'.
    """

    language: str
    prompt: str
    relation: str
    subject: Noun
    value: Noun
    rivals: tuple[Noun, ...]
    told: tuple[Noun, ...]
    form: str
    opening: str = ""
    most: int = 0

    @property
    def answerer(self) -> ModuleType:
        """Writes and reads answers in the instruction's language."""
        return ANSWERERS[self.language]

    def is_true(self, answer: str) -> bool:
        """Does it name the true value and no rival?"""
        names = self.answerer.names
        return names(answer, self.value) and not any(names(answer, rival) for rival in self.rivals)

    def is_polite(self, answer: str) -> bool:
        """Is it polite, as its language is?"""
        return self.answerer.is_polite(answer)

    def is_of_the_form(self, answer: str) -> bool:
        """Does it have the form that was asked for? Courtesies are not counted as words of it."""
        answer = answer.strip()
        words = [word for word in self.answerer.without_courtesy(answer).split() if any(map(str.isalnum, word))]
        checks = {
            "word": len(words) == 1,
            "sentence": len(words) >= self.answerer.LEAST_WORDS and answer[-1] in ".!",
            "opening": answer.startswith(self.opening) and len(words) > 1,
            "short": 0 < len(answer) <= self.most,
            "quoted": len(answer) > 2 and answer.count('"') == 2 and answer[0] == answer[-1] == '"',
            "exclaimed": answer.endswith("!") and len(answer) > 1,
        }
        return checks[self.form]


def pose(seed: int, split: str, language: str, index: int, names: str | None = None) -> Instruction:
    """Instruction `index` of a split.

    Args:
      names: the split whose people are spoken of; None takes `split`.
    """
    dice = Dice(seed, split, language, "instruction", index)
    scene, fact = _scene(dice, names or split)
    answerer = ANSWERERS[language]
    form = dice.pick(FORMS)
    value = scene.cast[fact.value]
    if form == "word" and " " in value.english:
        form = "short"
    opening = dice.pick(answerer.OPENINGS) if form == "opening" else ""
    most = dice.pick(answerer.LIMITS) if form == "short" else 0
    told = answerer.tell(dice, scene, dice.draw(scene.facts, len(scene.facts)))
    question = _TELLERS[language].ask(dice, scene, fact, False).question
    prompt = f"{told}\n{question} {answerer.demand(dice, form, opening, most)}"
    rivals = tuple(other for other in SHARED[fact.relation] if other is not value)
    others = tuple(scene.cast[other.value] for other in scene.rivals(fact) if other != fact)
    subject = scene.cast[fact.subject]
    return Instruction(language, prompt, fact.relation, subject, value, rivals, others, form, opening, most)


_KINDS = (("a", 1), ("a", 1), ("a", 2), ("ab", 1))
"""Who is told of, and how many traits of each."""


def _scene(dice: Dice, names: str) -> tuple[Scene, Fact]:
    """Two people with a trait in common, or one with a trait or two; and which of these is asked for."""
    people = dice.draw(PEOPLE[names], 2)
    cast: dict[str, Noun] = dict(zip("ab", people, strict=True))
    subjects, traits = dice.pick(_KINDS)
    facts = []
    for relation in dice.draw(ASKED, traits):
        for subject, value in zip(subjects, dice.draw(SHARED[relation], len(subjects)), strict=True):
            cast[f"{subject}.{relation}"] = value
            facts.append(Fact(relation, subject, f"{subject}.{relation}"))
    return Scene("instruction", cast, tuple(facts)), dice.pick(facts)
