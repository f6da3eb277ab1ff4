"""A text and what is asked about it, in either natural language."""

from types import ModuleType

from hcxjax.world.dice import Dice
from hcxjax.world.facts import Fact, Scene

QUESTION_SHARE = 0.7
"""Share of documents that end in questions and answers."""


def can_ask_who(language: ModuleType, scene: Scene, fact: Fact) -> bool:
    """Whether the fact's subject can be asked for, and is alone in it."""
    same = [other for other in scene.rivals(fact) if scene.cast[other.value] is scene.cast[fact.value]]
    return bool(language.RELATIONS[fact.relation].ask_who) and len(same) == 1


def write(language: ModuleType, dice: Dice, scene: Scene) -> str:
    """The scene told in `language` (the module `korean` or `english`), mostly with one to three questions answered."""
    body = language.tell(dice, scene)
    if not dice.chance(QUESTION_SHARE):
        return body
    lines = [body]
    for fact in dice.draw(scene.facts, dice.number(1, 3)):
        who = can_ask_who(language, scene, fact) and dice.chance(0.4)
        exchange = language.ask(dice, scene, fact, who)
        lines += [f"{language.QUESTION} {exchange.question}", f"{language.ANSWER} {exchange.lead}{exchange.rest}"]
    return "\n".join(lines)
