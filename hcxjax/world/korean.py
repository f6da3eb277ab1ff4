"""Tells a scene in Korean."""

import re
from functools import cache, partial

from hcxjax.world import korean_stories as stories
from hcxjax.world import wording
from hcxjax.world.dice import Dice
from hcxjax.world.facts import Fact, Scene, order_facts
from hcxjax.world.hangul import attach
from hcxjax.world.korean_patterns import RELATIONS
from hcxjax.world.names import Noun
from hcxjax.world.wording import Exchange, fill

PLAIN, POLITE, CASUAL = range(3)
"""Styles: 산다 (written), 살아요 (polite), 살아 (among friends)."""
_PAST = ("다", "어요", "어")
_COPULA = ("이다", "이에요", "이야")


@cache
def _in_style(pattern: str, style: int) -> str:
    pattern = pattern.replace("{다}", _PAST[style]).replace(":이다}", f":{_COPULA[style]}}}")
    return re.sub(r"\[([^\]]*)\]", lambda match: match[1].split("|")[style], pattern)


def inflect(noun: Noun, particle: str) -> str:
    """The noun with its particle, if any."""
    return attach(noun.korean, particle) if particle else noun.korean


def say(pattern: str, cast, style: int, until: str = "") -> str:
    """One pattern in a style; `until` names a role to stop before."""
    return fill(_in_style(pattern, style), cast, inflect, until)


@cache
def _without_subject(pattern: str) -> str:
    """Korean leaves unsaid whom the sentence before was about already."""
    shorter = pattern.removeprefix("{x:은} ").removeprefix("{x}의 ")
    return pattern if "{x" in shorter else shorter


def state(dice: Dice, scene: Scene, facts: list[Fact], style: int) -> str:
    """Facts as sentences, in this order."""
    return wording.state(dice, scene, facts, RELATIONS, partial(say, style=style), _without_subject)


def ask(dice: Dice, scene: Scene, fact: Fact, who: bool) -> Exchange:
    """Question and answer about a fact: for its value, or for its subject if `who`. Always polite."""
    subject, value = scene.fillers(fact)
    patterns, cast = RELATIONS[fact.relation], {"x": subject, "v": value}
    questions, answers = (patterns.ask_who, patterns.answer_who) if who else (patterns.ask, patterns.answer)
    question, answer = dice.pick(questions), dice.pick(answers)
    lead = say(answer, cast, POLITE, until="x" if who else "v")
    return Exchange(say(question, cast, POLITE), lead, say(answer, cast, POLITE)[len(lead) :])


QUESTION, ANSWER = "질문:", "답:"


def _follow_plot(dice: Dice, steps, cast, style: int) -> str:
    sentences = [say(pattern, cast, style) for step in steps if (pattern := dice.pick(step))]
    return " ".join(sentences)


def _introduce(dice: Dice, scene: Scene, facts: list[Fact], style: int) -> str:
    """Facts in a row; now and then a person's first mention carries the romanised name."""
    text = state(dice, scene, facts, style)
    name = scene.cast["a"]
    return text.replace(name.korean, f"{name.korean}({name.english})", 1) if dice.chance(0.15) else text


def _list(dice: Dice, scene: Scene) -> str:
    bullet, glossed = dice.pick(("- ", "* ", "")), dice.chance(0.3)
    lines = []
    for person in dice.draw("abc", 3):
        name = scene.cast[person]
        lines.append(f"이름: {name.korean}({name.english})" if glossed else f"이름: {name.korean}")
        for fact in scene.facts:
            if fact.subject == person:
                unit = "살" if fact.relation == "age" else ""
                lines.append(f"{bullet}{RELATIONS[fact.relation].label}: {scene.cast[fact.value].korean}{unit}")
    return "\n".join(lines)


def _couple(dice: Dice, scene: Scene, style: int) -> str:
    traits = [fact for fact in scene.facts if fact.relation != "older"]
    endings = (
        "{older:은} {younger}보다 {gap}살 많[다|아요].",
        "둘 가운데 {older:이} {gap}살 더 많[다|아요].",
        "그러니까 {older:이} {younger}보다 나이가 많[다|아요].",
    )
    opening = dice.pick(
        (
            "",
            "{a:과} {b:은} 오랜 친구[다|예요]. ",
            "{a:과} {b:은} 이웃[이다|이에요]. ",
            "{a:과} {b:은} 어릴 때부터 친하게 [지낸다|지내요]. ",
        )
    )
    middle = _introduce(dice, scene, order_facts(dice, tuple(traits)), style)
    return say(opening, scene.cast, style) + middle + " " + say(dice.pick(endings), scene.cast, style)


def _festival(dice: Dice, scene: Scene, style: int) -> str:
    made = [fact for fact in scene.facts if fact.relation == "made"]
    parts = [say(dice.pick(stories.FESTIVAL_OPENING), scene.cast, style)]
    parts.append(state(dice, scene, dice.draw(made, len(made)), style))
    return " ".join([*parts, say(dice.pick(stories.FESTIVAL_ENDING), scene.cast, style)])


def _letter(dice: Dice, scene: Scene) -> str:
    body = _follow_plot(dice, stories.LETTER, scene.cast, CASUAL)
    return f"{body}\n{say(dice.pick(stories.LETTER_SIGNATURE), scene.cast, CASUAL)}"


def _diary(dice: Dice, scene: Scene) -> str:
    title = say(dice.pick(stories.DIARY_TITLE), scene.cast, PLAIN)
    return f"{title}\n{_follow_plot(dice, stories.DIARY, scene.cast, PLAIN)}"


def _dialogue(dice: Dice, scene: Scene) -> str:
    turns = [dice.pick(step) for step in stories.DIALOGUE]
    return "\n".join(f"{scene.cast[speaker].korean}: {say(pattern, scene.cast, POLITE)}" for speaker, pattern in turns)


def tell(dice: Dice, scene: Scene) -> str:
    """The facts of a scene as a text of its form, without questions."""
    style = dice.pick((PLAIN, POLITE))
    if scene.form in stories.PLOTS:
        return _follow_plot(dice, stories.PLOTS[scene.form], scene.cast, style)
    if scene.form in ("profile", "roster"):
        return _introduce(dice, scene, order_facts(dice, scene.facts), style)
    if scene.form in ("couple", "festival"):
        return {"couple": _couple, "festival": _festival}[scene.form](dice, scene, style)
    return {"list": _list, "letter": _letter, "diary": _diary, "dialogue": _dialogue}[scene.form](dice, scene)
