"""Constraints on the length and the form of an answer, as data, and the rules that check them.

| name              | argument | an answer keeps it that                                                             |
|-------------------|----------|-------------------------------------------------------------------------------------|
| `most_characters` | count    | has at most so many characters                                                      |
| `least_characters`| count    | has at least so many                                                                |
| `characters`      | count    | has exactly so many                                                                 |
| `most_words`      | count    | has at most so many words, parted by spaces                                         |
| `least_words`     | count    | has at least so many                                                                |
| `words`           | count    | has exactly so many                                                                 |
| `most_sentences`  | count    | has at most so many sentences                                                       |
| `least_sentences` | count    | has at least so many                                                                |
| `sentences`       | count    | has exactly so many                                                                 |
| `lines`           | count    | has exactly so many lines that are not blank                                        |
| `paragraphs`      | count    | has exactly so many parts, parted by blank lines                                    |
| `bullets`         | count    | has exactly so many lines that begin with - or *                                    |
| `numbered`        | count    | has lines 1. to so many, in order, and no other numbered line                       |
| `items`           | count    | has exactly so many parts, parted by commas                                         |
| `language`        | ko, en   | has Hangul, or Latin, in nine of ten letters                                        |
| `begins_with`     | text     | begins with it                                                                      |
| `ends_with`       | text     | ends with it                                                                        |
| `contains`        | texts    | has each of them                                                                    |
| `without`         | texts    | has none of them                                                                    |
| `polite`          | true     | ends every sentence in 해요체 or 합니다체                                           |
| `lowercase`       | true     | has letters, none of them a capital                                                 |
| `uppercase`       | true     | has letters, all of them capitals                                                   |
| `number`          | true     | is a number in digits and nothing else                                              |
| `quoted`          | true     | stands in double quotes                                                             |
| `json`            | keys     | is a JSON object with exactly these keys, or with `[]` any JSON object or list      |

Spaces around an answer count for nothing; an empty answer keeps no constraint.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from hcxjax.world import SPOKEN
from hcxjax.world.korean_answers import is_polite

_SENTENCE_END = re.compile(r"[.!?…。？！]+[\"'”’)\]]*(?=\s|$)|\n+")
_BULLET = re.compile(r"^\s*[-*•]\s+\S", re.M)
_NUMBERED = re.compile(r"^\s*(\d+)[.)]\s+\S", re.M)
_NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d+)?\.?")
_LETTERS = {"ko": re.compile(r"[가-힣ㄱ-ㅣ]"), "en": re.compile(r"[A-Za-z]")}
_SHARE = 0.9


def _sentences(text: str) -> int:
    return sum(any(map(str.isalnum, part)) for part in _SENTENCE_END.split(text))


def _lines(text: str) -> int:
    return sum(bool(line.strip()) for line in text.splitlines())


def _paragraphs(text: str) -> int:
    return sum(bool(part.strip()) for part in re.split(r"\n\s*\n", text))


def _is_in(text: str, language: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    return len(_LETTERS[language].findall(text)) >= _SHARE * len(letters) > 0


def _is_object(text: str, keys: list[str]) -> bool:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and sorted(found) == sorted(keys) if keys else isinstance(found, dict | list)


_COUNTS: Mapping[str, Callable[[str], int]] = {
    "characters": len,
    "words": lambda text: len(text.split()),
    "sentences": _sentences,
}
_RULES: Mapping[str, Callable[[str, Any], bool]] = {
    **{name: lambda text, count, measure=measure: measure(text) == count for name, measure in _COUNTS.items()},
    **{
        f"most_{name}": lambda text, count, measure=measure: measure(text) <= count for name, measure in _COUNTS.items()
    },
    **{
        f"least_{name}": lambda text, count, measure=measure: measure(text) >= count
        for name, measure in _COUNTS.items()
    },
    "lines": lambda text, count: _lines(text) == count,
    "paragraphs": lambda text, count: _paragraphs(text) == count,
    "bullets": lambda text, count: len(_BULLET.findall(text)) == count,
    "numbered": lambda text, count: _NUMBERED.findall(text) == [str(number) for number in range(1, count + 1)],
    "items": lambda text, count: (
        sum(bool(part.strip(" .\n")) for part in text.split(",")) == count == text.count(",") + 1
    ),
    "language": _is_in,
    "begins_with": lambda text, begin: text.startswith(begin),
    "ends_with": lambda text, end: text.endswith(end),
    "contains": lambda text, parts: all(part in text for part in parts),
    "without": lambda text, parts: not any(part in text for part in parts),
    "polite": lambda text, _: is_polite(text),
    "lowercase": lambda text, _: text.lower() == text != text.upper(),
    "uppercase": lambda text, _: text.upper() == text != text.lower(),
    "number": lambda text, _: _NUMBER.fullmatch(text) is not None,
    "quoted": lambda text, _: (
        len(text) > 2 and text[0] in '"“' and text[-1] in '"”' and not re.search('["“”]', text[1:-1])
    ),
    "json": _is_object,
}
CONSTRAINTS = tuple(_RULES)
"""Names of all that can be asked."""
_BY_MEASURE = tuple(name for name in _RULES if name.rpartition("_")[2] in _COUNTS)
_WHOLE = (*_BY_MEASURE, "lines", "paragraphs", "bullets", "numbered", "items")


def keeps(answer: str, constraints: Mapping[str, Any]) -> bool:
    """Does an answer keep every one of the constraints, name → argument?"""
    text = answer.strip()
    return bool(text) and all(_RULES[name](text, argument) for name, argument in constraints.items())


@dataclasses.dataclass(frozen=True)
class Constrained:
    """A request that constrains its answer.

    Attributes:
      language: of the request, 'ko' or 'en'.
      prompt: the request.
      constraints: name → argument.
    """

    language: str
    prompt: str
    constraints: Mapping[str, Any]

    def __post_init__(self):
        if self.language not in SPOKEN or not self.prompt.strip() or not self.constraints:
            raise ValueError(f"{self} needs a language ({', '.join(SPOKEN)}), a prompt and constraints")
        for name, argument in self.constraints.items():
            _check(name, argument)


def _check(name: str, argument: Any) -> None:
    """ValueError unless a constraint of that name takes such an argument."""
    if name not in _RULES:
        raise ValueError(f"the constraint {name!r} is unknown; there are {', '.join(_RULES)}")
    if name in _WHOLE:
        known = isinstance(argument, int) and not isinstance(argument, bool) and argument > 0
    elif name in ("contains", "without", "json"):
        known = isinstance(argument, list) and all(isinstance(part, str) and part for part in argument)
        known = known and (name == "json" or bool(argument))
    elif name in ("begins_with", "ends_with"):
        known = isinstance(argument, str) and bool(argument)
    else:
        known = argument in SPOKEN if name == "language" else argument is True
    if not known:
        raise ValueError(f"the constraint {name} has the argument {argument!r}; see the table in {__name__}")


@cache
def shipped() -> tuple[Constrained, ...]:
    """The requests that come with the project."""
    return read((files("hcxjax.evaluation") / "instructions.jsonl").read_text(encoding="utf-8"))


def read(text: str) -> tuple[Constrained, ...]:
    """Requests of JSON lines with language, prompt and constraints. ValueError names the line that is none."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            found.append(Constrained(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise ValueError(f"line {number}: {error}") from error
    return tuple(found)
