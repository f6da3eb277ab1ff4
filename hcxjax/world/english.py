"""Tells a scene in English."""

from functools import cache, lru_cache

from hcxjax.world import english_stories as stories
from hcxjax.world import wording
from hcxjax.world.dice import Dice
from hcxjax.world.english_patterns import RELATIONS
from hcxjax.world.facts import Fact, Scene, order_facts
from hcxjax.world.names import Noun, PersonName
from hcxjax.world.wording import Exchange, fill

QUESTION, ANSWER = "Question:", "Answer:"

_PRONOUNS = {"he": ("he", "she"), "him": ("him", "her"), "his": ("his", "her"), "man": ("man", "woman")}


def article(word: str) -> str:
    """`a` or `an`, by the first letter: no word of the world begins with a silent h or a long u."""
    return "an" if word[0].lower() in "aeiou" else "a"


@lru_cache(maxsize=1 << 15)
def inflect(noun: Noun, form: str) -> str:
    """The noun in a form: "a", "s", a pronoun, and ":cap" after it for a capital."""
    form, _, capital = form.partition(":")
    word = noun.english
    if form == "a":
        word = f"{article(word)} {word}"
    elif form == "s":
        word = noun.plural
    elif isinstance(noun, PersonName) and form:
        word = _PRONOUNS[form][noun.female]
    return word[0].upper() + word[1:] if capital else word


def say(pattern: str, cast, until: str = "") -> str:
    """One pattern, capitalised; `until` names a role to stop before."""
    text = fill(pattern, cast, inflect, until)
    return text[:1].upper() + text[1:]


@cache
def with_pronoun(pattern: str) -> str:
    """The pattern that speaks of {x} as he or she."""
    return pattern.replace("{x}'s", "{x:his}").replace("{x}", "{x:he}")


def state(dice: Dice, scene: Scene, facts: list[Fact]) -> str:
    """Facts as sentences, in this order; whom the sentence before was about may become a pronoun."""
    return wording.state(dice, scene, facts, RELATIONS, say, with_pronoun)


def ask(dice: Dice, scene: Scene, fact: Fact, who: bool) -> Exchange:
    """Question and answer about a fact: for its value, or for its subject if `who`."""
    subject, value = scene.fillers(fact)
    patterns, cast = RELATIONS[fact.relation], {"x": subject, "v": value}
    questions, answers = (patterns.ask_who, patterns.answer_who) if who else (patterns.ask, patterns.answer)
    question, answer = dice.pick(questions), dice.pick(answers)
    lead = say(answer, cast, until="x" if who else "v")
    return Exchange(say(question, cast), lead, say(answer, cast)[len(lead) :])


def _follow_plot(dice: Dice, steps, cast) -> str:
    return " ".join(say(pattern, cast) for step in steps if (pattern := dice.pick(step)))


def _list(dice: Dice, scene: Scene) -> str:
    bullet = dice.pick(("- ", "* ", ""))
    lines = []
    for person in dice.draw("abc", 3):
        lines.append(f"Name: {scene.cast[person].english}")
        for fact in scene.facts:
            if fact.subject == person:
                value = scene.cast[fact.value]
                lines.append(f"{bullet}{RELATIONS[fact.relation].label}: {value.plural or value.english}")
    return "\n".join(lines)


def _couple(dice: Dice, scene: Scene) -> str:
    endings = (
        "{older} is older than {younger}.",
        "{older} is older than {younger} by {gap}.",
        "Of the two, {older} is older.",
        "So {older} is older than {younger}.",
    )
    opening = dice.pick(
        (
            "",
            "{a} and {b} are old friends. ",
            "{a} and {b} are neighbors. ",
            "{a} and {b} have known each other since school. ",
        )
    )
    traits = tuple(fact for fact in scene.facts if fact.relation != "older")
    middle = state(dice, scene, order_facts(dice, traits))
    return f"{say(opening, scene.cast)}{middle} {say(dice.pick(endings), scene.cast)}"


def _festival(dice: Dice, scene: Scene) -> str:
    made = [fact for fact in scene.facts if fact.relation == "made"]
    parts = [say(dice.pick(stories.FESTIVAL_OPENING), scene.cast)]
    parts.append(state(dice, scene, dice.draw(made, len(made))))
    return " ".join([*parts, say(dice.pick(stories.FESTIVAL_ENDING), scene.cast)])


def _letter(dice: Dice, scene: Scene) -> str:
    return f"{_follow_plot(dice, stories.LETTER, scene.cast)}\n{say(dice.pick(stories.LETTER_SIGNATURE), scene.cast)}"


def _diary(dice: Dice, scene: Scene) -> str:
    return f"{say(dice.pick(stories.DIARY_TITLE), scene.cast)}\n{_follow_plot(dice, stories.DIARY, scene.cast)}"


def _dialogue(dice: Dice, scene: Scene) -> str:
    turns = [dice.pick(step) for step in stories.DIALOGUE]
    return "\n".join(f"{scene.cast[speaker].english}: {say(pattern, scene.cast)}" for speaker, pattern in turns)


def tell(dice: Dice, scene: Scene) -> str:
    """The facts of a scene as a text of its form, without questions."""
    if scene.form in stories.PLOTS:
        return _follow_plot(dice, stories.PLOTS[scene.form], scene.cast)
    if scene.form in ("profile", "roster"):
        return state(dice, scene, order_facts(dice, scene.facts))
    forms = {
        "list": _list,
        "couple": _couple,
        "festival": _festival,
        "letter": _letter,
        "diary": _diary,
        "dialogue": _dialogue,
    }
    return forms[scene.form](dice, scene)
