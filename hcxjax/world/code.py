"""Tells a scene as a small Python program whose assertions hold."""

from hcxjax.world.dice import Dice
from hcxjax.world.facts import Fact, Scene
from hcxjax.world.names import Noun

_FIELDS = {
    "home": "str",
    "job": "str",
    "age": "int",
    "food": "str",
    "color": "str",
    "hobby": "str",
    "pet": "str",
    "made": "str",
}


def literal(noun: Noun) -> str:
    """The noun as a Python literal: its number, or its English name."""
    return repr(noun.value) if noun.value is not None else f'"{noun.english}"'


def _identifier(noun: Noun) -> str:
    return noun.english.lower().replace(" ", "_")


def _table(scene: Scene) -> dict[Noun, list[Fact]]:
    """The traits told of each person."""
    rows: dict[Noun, list[Fact]] = {}
    for fact in scene.facts:
        if fact.relation in _FIELDS:
            rows.setdefault(scene.cast[fact.subject], []).append(fact)
    return rows


def read(scene: Scene, fact: Fact, pattern: str) -> str:
    """The expression that reads a trait, by the pattern that `define` gave with the program."""
    person = scene.cast[fact.subject]
    return pattern.format(key=literal(person), name=_identifier(person), field=fact.relation)


def _check(dice: Dice, scene: Scene, pattern: str) -> list[str]:
    """Assertions about a few traits."""
    facts = [fact for fact in scene.facts if fact.relation in _FIELDS]
    checked = dice.draw(facts, min(len(facts), dice.number(2, 3)))
    return [f"assert {read(scene, fact, pattern)} == {literal(scene.cast[fact.value])}" for fact in checked]


def _nested(dice: Dice, scene: Scene) -> tuple[list[str], str]:
    """A dict of dicts."""
    rows = _table(scene)
    lines = [dice.pick(("# 사람들", "# people", "# 사람들의 정보")), "people = {"]
    for person, facts in rows.items():
        entries = ", ".join(f'"{fact.relation}": {literal(scene.cast[fact.value])}' for fact in facts)
        lines.append(f"    {literal(person)}: {{{entries}}},")
    return [*lines, "}"], 'people[{key}]["{field}"]'


def _columns(dice: Dice, scene: Scene) -> tuple[list[str], str]:
    """A dict for each relation."""
    lines = []
    for relation in dict.fromkeys(fact.relation for fact in scene.facts if fact.relation in _FIELDS):
        told = [scene.fillers(fact) for fact in scene.facts if fact.relation == relation]
        lines.append(f"{relation} = {{{', '.join(f'{literal(person)}: {literal(value)}' for person, value in told)}}}")
    return lines, "{field}[{key}]"


_FIND = (
    "def find(table, value):",
    "    for key in table:",
    "        if table[key] == value:",
    "            return key",
    "",
)


def _finder(dice: Dice, scene: Scene) -> tuple[list[str], str]:
    """A dict for each relation, and a function that finds a key by its value."""
    lines, pattern = _columns(dice, scene)
    person, value = scene.fillers(fact := dice.pick(scene.facts))
    return [*lines, "", *_FIND, f"assert find({fact.relation}, {literal(value)}) == {literal(person)}"], pattern


def _dataclass(dice: Dice, scene: Scene) -> tuple[list[str], str]:
    """A dataclass and an instance for each person."""
    rows = _table(scene)
    lines = ["from dataclasses import dataclass", "", "@dataclass", "class Person:", "    name: str"]
    lines += [f"    {fact.relation}: {_FIELDS[fact.relation]}" for fact in next(iter(rows.values()))] + [""]
    for person, facts in rows.items():
        values = ", ".join(literal(scene.cast[fact.value]) for fact in facts)
        gloss = f"  # {person.korean}" if dice.chance(0.5) else ""
        lines.append(f"{_identifier(person)} = Person({literal(person)}, {values}){gloss}")
    return lines, "{name}.{field}"


def _oldest(dice: Dice, scene: Scene) -> list[str]:
    """Ages compared by a function."""
    older, younger = scene.cast["older"], scene.cast["younger"]
    function = dice.pick(
        (
            ("def older(x, y):", "    if age[x] > age[y]:", "        return x", "    return y"),
            ("def older(x, y):", "    return x if age[x] > age[y] else y"),
            ("def older(x, y):", "    return max(x, y, key=age.get)"),
        )
    )
    lines, pattern = _columns(dice, scene)
    pair = dice.draw((literal(older), literal(younger)), 2)
    difference = f"assert age[{literal(older)}] - age[{literal(younger)}] == {scene.cast['gap'].value}"
    lines += ["", *function, "", f"assert older({', '.join(pair)}) == {literal(older)}", difference]
    return lines + _check(dice, scene, pattern)


def _shopping(dice: Dice, scene: Scene) -> list[str]:
    """Price and remainder as functions."""
    cast = scene.cast
    count, price, given = (cast[role].value for role in ("count", "price", "given"))
    paid, left = cast["paid"].value, cast["left"].value
    buyer, food = literal(cast["a"]), literal(cast["food"])
    total, rest = dice.pick((("total", "rest"), ("cost", "remain"), ("pay", "left_over")))
    if dice.chance(0.5):
        head = [
            f"def {total}(count, price):",
            "    return count * price",
            "",
            f"def {rest}(count, given):",
            "    return count - given",
            "",
        ]
        sale = [
            f'sale = {{"buyer": {buyer}, "food": {food}, "count": {count}}}',
            f'assert sale["food"] == {food}',
            f'assert {total}(sale["count"], {price}) == {paid}',
        ]
        return [*head, *sale, f'assert {rest}(sale["count"], {given}) == {left}']
    doctest = [
        f"def {total}(count, price):",
        '    """',
        f"    >>> {total}({count}, {price})",
        f"    {paid}",
        '    """',
        "    return count * price",
        "",
    ]
    names = [
        f"buyer = {buyer}",
        f"food = {food}",
        f"count = {count}",
        f"paid = {total}(count, {price})",
        f"left = count - {given}",
    ]
    return [*doctest, *names, f"assert paid == {paid}", f"assert left == {left}"]


def _triples(dice: Dice, scene: Scene) -> list[str]:
    """A list of facts and a function that looks one up."""
    names = [
        (literal(scene.cast[fact.subject]), f'"{fact.relation}"', literal(scene.cast[fact.value]))
        for fact in scene.facts
    ]
    lines = ["facts = [", *(f"    ({', '.join(triple)})," for triple in names), "]", ""]
    lines += dice.pick(
        (
            (
                "def find(who, what):",
                "    for subject, relation, value in facts:",
                "        if (subject, relation) == (who, what):",
                "            return value",
            ),
            ("def find(who, what):", "    return next(v for s, r, v in facts if (s, r) == (who, what))"),
        )
    )
    checked = dice.draw(names, 2)
    return [*lines, "", *(f"assert find({subject}, {relation}) == {value}" for subject, relation, value in checked)]


def _record(dice: Dice, scene: Scene) -> list[str]:
    """A plain dict of what happened, one entry for each fact."""
    name = scene.form
    keys = [
        (f'"{fact.relation}"', literal(scene.cast[fact.subject]), literal(scene.cast[fact.value]))
        for fact in scene.facts
    ]
    lines = [f"{name} = {{", *(f"    {key}: ({subject}, {value})," for key, subject, value in keys), "}", ""]
    lines += [
        "def subject(relation):",
        f"    return {name}[relation][0]",
        "",
        "def value(relation):",
        f"    return {name}[relation][1]",
        "",
    ]
    (key, subject, _), (other, _, value) = dice.draw(keys, 2)
    return [*lines, f"assert subject({key}) == {subject}", f"assert value({other}) == {value}"]


_TABLES = (_nested, _columns, _finder, _dataclass)
_OF_PEOPLE = ("profile", "roster", "list")
_PROGRAMS = {"couple": (_oldest,), "shopping": (_shopping,), "festival": (_triples,)}


def define(dice: Dice, scene: Scene) -> tuple[str, str]:
    """The traits of people as data, and the pattern by which the program reads one (see `read`)."""
    lines, pattern = dice.pick(_TABLES)(dice, scene)
    return "\n".join(lines), pattern


def write(dice: Dice, scene: Scene) -> str:
    """The program of a scene."""
    if scene.form in _OF_PEOPLE:
        program, pattern = define(dice, scene)
        return "\n".join([program, *_check(dice, scene, pattern)])
    return "\n".join(dice.pick(_PROGRAMS.get(scene.form, (_triples, _record)))(dice, scene))
