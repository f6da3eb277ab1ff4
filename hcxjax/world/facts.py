"""The world itself: scenes of people, places, things and events, before any language tells of them.

A scene is a cast (roles and who or what fills them) and the facts that hold in it. Renderers tell the facts, questions
ask for a fact's value or its subject, code asserts them: all from the same object, so they cannot disagree.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from hcxjax.world.dice import Dice
from hcxjax.world.lexicon import COLORS, COUNTS, DAYS, FOODS, HOBBIES, JOBS, PETS, SPOTS, VEHICLES, WEATHERS, number
from hcxjax.world.names import EVENTS, PEOPLE, PLACES, THINGS, Noun


@dataclass(frozen=True)
class Fact:
    """`relation` holds between what fills the roles `subject` and `value`: home, a, a.home."""

    relation: str
    subject: str
    value: str


@dataclass(frozen=True)
class Scene:
    """One little state of the world. `form` is the kind of document that tells of it."""

    form: str
    cast: Mapping[str, Noun]
    facts: tuple[Fact, ...]

    def fillers(self, fact: Fact) -> tuple[Noun, Noun]:
        """Who or what a fact is about, and its value."""
        return self.cast[fact.subject], self.cast[fact.value]

    def rivals(self, fact: Fact) -> tuple[Fact, ...]:
        """The facts of the same relation, `fact` included: what a careless reader could take for it."""
        return tuple(other for other in self.facts if other.relation == fact.relation)


TRAITS = ("home", "job", "age", "food", "color", "hobby", "pet", "made")
"""Relations between a person and what is true of them, everybody's different within a scene."""
_AGES = tuple(number(age) for age in range(21, 70))
SHARED = {"job": JOBS, "age": _AGES, "food": FOODS, "color": COLORS, "hobby": HOBBIES, "pet": PETS}
"""Traits whose values every split knows."""
PERSONS = ("a", "b", "c")


def _trait_values(split: str, trait: str) -> tuple[Noun, ...]:
    if trait == "home":
        return PLACES[split]
    return THINGS[split] if trait == "made" else SHARED[trait]


def _traits(dice: Dice, split: str, cast: dict, people: str, traits: list[str]) -> list[Fact]:
    """Casts different values for everybody's traits and returns the facts."""
    for trait in traits:
        for person, value in zip(people, dice.draw(_trait_values(split, trait), len(people)), strict=True):
            cast[f"{person}.{trait}"] = value
    return [Fact(trait, person, f"{person}.{trait}") for person in people for trait in traits]


def _profile(dice: Dice, split: str, cast: dict) -> list[Fact]:
    return _traits(dice, split, cast, "a", dice.draw(TRAITS, dice.number(4, 5)))


def _roster(dice: Dice, split: str, cast: dict) -> list[Fact]:
    return _traits(dice, split, cast, "abc", dice.draw(TRAITS, dice.number(2, 3)))


def _couple(dice: Dice, split: str, cast: dict) -> list[Fact]:
    facts = _traits(dice, split, cast, "ab", ["age", *dice.draw(("home", "job", "food", "pet"), 1)])
    older, younger = sorted("ab", key=lambda person: -cast[f"{person}.age"].value)
    cast.update(older=cast[older], younger=cast[younger])
    gap = cast[f"{older}.age"].value - cast[f"{younger}.age"].value
    cast["gap"] = number(gap)
    return [*facts, Fact("older", older, younger)]


def _lost(dice: Dice, split: str, cast: dict) -> list[Fact]:
    cast["a.home"] = dice.pick(PLACES[split])
    return [
        Fact("home", "a", "a.home"),
        Fact("lost", "a", "thing"),
        Fact("found", "b", "thing"),
        Fact("found_at", "thing", "spot"),
    ]


def _shopping(dice: Dice, split: str, cast: dict) -> list[Fact]:
    count = dice.number(4, 9)
    given = dice.number(2, count - 2)
    price = dice.number(1, 9)
    cast.update(count=COUNTS[count - 1], given=COUNTS[given - 1], left=COUNTS[count - given - 1])
    cast.update(price=number(100 * price), paid=number(100 * price * count))
    return [
        Fact("bought", "a", "food"),
        Fact("count", "a", "count"),
        Fact("paid", "a", "paid"),
        Fact("left", "a", "left"),
    ]


def _trip(dice: Dice, split: str, cast: dict) -> list[Fact]:
    return [
        Fact("went", "a", "place"),
        Fact("vehicle", "a", "vehicle"),
        Fact("ate", "a", "food"),
        Fact("gift", "b", "thing"),
    ]


def _meeting(dice: Dice, split: str, cast: dict) -> list[Fact]:
    return [
        Fact("event_place", "event", "place"),
        Fact("event_day", "event", "day"),
        Fact("met", "a", "b"),
        Fact("ate", "a", "food"),
    ]


def _festival(dice: Dice, split: str, cast: dict) -> list[Fact]:
    facts = _traits(dice, split, cast, "abc", ["made"])
    cast["winner"] = cast[dice.pick(PERSONS)]
    return [Fact("event_place", "event", "place"), *facts, Fact("won", "event", "winner")]


def _letter(dice: Dice, split: str, cast: dict) -> list[Fact]:
    return [Fact("stays", "a", "place"), Fact("ate", "a", "food"), Fact("gift", "b", "thing")]


def _diary(dice: Dice, split: str, cast: dict) -> list[Fact]:
    return [Fact("visited", "a", "spot"), Fact("met", "a", "b"), Fact("chose", "a", "thing")]


def _dialogue(dice: Dice, split: str, cast: dict) -> list[Fact]:
    return [Fact("will_go", "b", "place"), Fact("will_day", "b", "day"), Fact("will_vehicle", "b", "vehicle")]


_FACTS: dict[str, Callable[[Dice, str, dict], list[Fact]]] = {
    "profile": _profile,
    "roster": _roster,
    "list": _roster,
    "couple": _couple,
    "lost": _lost,
    "shopping": _shopping,
    "trip": _trip,
    "meeting": _meeting,
    "festival": _festival,
    "letter": _letter,
    "diary": _diary,
    "dialogue": _dialogue,
}
FORMS = tuple(_FACTS)
_WEIGHTED = (*FORMS, "roster", "roster", "roster", "festival", "couple")
"""Forms with several people to keep apart come more often: from them facts are learnt to be read."""


def sample_scene(seed: int, split: str, index: int, form: str = "") -> Scene:
    """Scene `index` of a split; `form` fixes what is otherwise drawn."""
    dice = Dice(seed, split, "scene", form, index)
    form = form or dice.pick(_WEIGHTED)
    cast: dict[str, Noun] = dict(zip(PERSONS, dice.draw(PEOPLE[split], len(PERSONS)), strict=True))
    pools = {"thing": THINGS[split], "event": EVENTS[split], "place": PLACES[split], "spot": SPOTS, "food": FOODS}
    pools |= {"day": DAYS, "vehicle": VEHICLES, "weather": WEATHERS}
    for role, pool in pools.items():
        cast[role] = dice.pick(pool)
    facts = _FACTS[form](dice, split, cast)
    return Scene(form, cast, tuple(facts))


def group_facts(dice: Dice, facts: list[Fact]) -> list[tuple[Fact, ...]]:
    """The facts one by one, or two neighbours of the same relation at a time."""
    groups, place = [], 0
    while place < len(facts):
        alike = place + 1 < len(facts) and facts[place].relation == facts[place + 1].relation
        size = 2 if alike and dice.chance(0.4) else 1
        groups.append(tuple(facts[place : place + size]))
        place += size
    return groups


def order_facts(dice: Dice, facts: tuple[Fact, ...]) -> list[Fact]:
    """The facts by person, by relation, or mixed: as a teller might put them."""
    shuffled = dice.draw(facts, len(facts))
    field = dice.pick(("subject", "relation", ""))
    if not field:
        return shuffled
    groups = list(dict.fromkeys(getattr(fact, field) for fact in shuffled))
    return sorted(shuffled, key=lambda fact: groups.index(getattr(fact, field)))
