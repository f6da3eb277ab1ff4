"""Sentence patterns with roles in braces, `{a}` or `{a:form}`, and how a language fills them."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

from hcxjax.world.dice import Dice
from hcxjax.world.facts import Fact, Scene, group_facts
from hcxjax.world.names import Noun

_ROLE = re.compile(r"\{([a-z][a-z_.]*)(?::([^}]*))?\}")


class Wording(NamedTuple):
    """How a language speaks of one relation between {x} and {v}. Of `tell`, `ask`, ... any pattern will do.

    `pair` tells of two at once, {x} and {v}, {y} and {w}. An answer to `ask` contains {v} and one to `ask_who` {x},
    both before anything that the question did not say already.
    """

    label: str
    tell: tuple[str, ...]
    ask: tuple[str, ...]
    answer: tuple[str, ...]
    ask_who: tuple[str, ...] = ()
    answer_who: tuple[str, ...] = ()
    pair: tuple[str, ...] = ()


@cache
def _parse(pattern: str) -> tuple[tuple[str, str, str], ...]:
    """(text before, role, form) for each role, then (text after, "", "")."""
    parts, end = [], 0
    for match in _ROLE.finditer(pattern):
        parts.append((pattern[end : match.start()], match[1], match[2] or ""))
        end = match.end()
    return (*parts, (pattern[end:], "", ""))


def fill(pattern: str, cast: Mapping[str, Noun], inflect: Callable[[Noun, str], str], until: str = "") -> str:
    """The sentence; `until` names a role to stop before."""
    out = []
    for text, role, form in _parse(pattern):
        out.append(text)
        if not role or role == until:
            break
        out.append(inflect(cast[role], form))
    return "".join(out)


class Exchange(NamedTuple):
    """A question and its answer; `lead` is what the answer says before the word that was asked for."""

    question: str
    lead: str
    rest: str


def state(
    dice: Dice,
    scene: Scene,
    facts: list[Fact],
    relations: Mapping[str, Wording],
    say: Callable[[str, Mapping[str, Noun]], str],
    shorten: Callable[[str], str],
) -> str:
    """Facts as sentences, in this order.

    Args:
      relations: patterns of each relation in the language.
      say: (pattern, cast) → sentence.
      shorten: the pattern where the sentence before was about the same subject.
    """
    sentences, known = [], ""
    for group in group_facts(dice, facts):
        wording = relations[group[0].relation]
        cast = dict(zip("xvyw", sum(map(scene.fillers, group), ()), strict=False))
        pattern = dice.pick(wording.pair if len(group) == 2 else wording.tell)
        if group[0].subject == known and len(group) == 1 and dice.chance(0.5):
            pattern = shorten(pattern)
        sentences.append(say(pattern, cast))
        known = group[0].subject if len(group) == 1 else ""
    return " ".join(sentences)
