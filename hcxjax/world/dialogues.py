"""Dialogues about a scene: it is told, and then one question after another is asked about it."""

from types import ModuleType

from hcxjax.world.dice import Dice
from hcxjax.world.document import can_ask_who
from hcxjax.world.facts import Scene


def converse(language: ModuleType, dice: Dice, scene: Scene) -> list[str]:
    """Requests and answers in turn; the first request tells the scene in `language` (`korean` or `english`)."""
    turns = [language.tell(dice, scene)]
    for fact in dice.draw(scene.facts, dice.number(1, 3)):
        who = can_ask_who(language, scene, fact) and dice.chance(0.4)
        exchange = language.ask(dice, scene, fact, who)
        turns += [exchange.question, f"{exchange.lead}{exchange.rest}"]
    told, question, *rest = turns
    return [f"{told}\n{question}", *rest]
