import doctest
import os
import random
import re
import subprocess
import sys
import unicodedata

import pytest

from hcxjax.world import LANGUAGES, SPLITS, World, lexicon, names
from hcxjax.world.facts import FORMS

WORLD = World()
COUNT = 1000
INVENTORIES = (names.PEOPLE, names.PLACES, names.THINGS, names.EVENTS)


@pytest.fixture(scope="module")
def texts():
    return {
        (language, split): list(WORLD.documents(language, split, count=COUNT))
        for language in LANGUAGES
        for split in SPLITS
    }


def test_a_document_is_a_function_of_its_index(texts):
    for language in LANGUAGES:
        order = random.Random(1).sample(range(COUNT), 50)
        assert [World().document(language, i) for i in order] == [texts[language, "train"][i] for i in order]
        assert list(WORLD.documents(language, start=500, count=3)) == texts[language, "train"][500:503]


def test_documents_are_the_same_in_another_process(texts):
    program = "from hcxjax.world import World; print(World().document('ko', 500), end='')"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONIOENCODING": "utf-8"}
    printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, check=True)
    assert printed.stdout.decode() == texts["ko", "train"][500]


def test_seeds_and_splits_differ(texts):
    for language in LANGUAGES:
        other = list(World(1).documents(language, count=200))
        assert sum(one == two for one, two in zip(other, texts[language, "train"], strict=False)) == 0
        assert not set(texts[language, "train"]) & set(texts[language, "validation"])


def test_no_held_out_name_occurs_in_training(texts):
    held_out = [noun for inventory in INVENTORIES for noun in inventory["validation"]]
    seen = {}
    for language in LANGUAGES:
        train, validation = ("\n".join(texts[language, split]) for split in SPLITS)
        spelled = [noun.korean if language == "ko" else noun.english for noun in held_out]
        assert not [name for name in spelled if name in train]
        seen[language] = sum(name in validation for name in spelled) / len(spelled)
    assert min(seen.values()) > 0.95


def test_the_languages_tell_the_same_facts(texts):
    for index in range(1000):
        scene = WORLD.scene(index)
        for language in LANGUAGES:
            text = texts[language, "train"][index].lower()
            for fact in scene.facts:
                for noun in scene.fillers(fact) if fact.relation != "older" else ():
                    spelled = noun.korean if language == "ko" else noun.english
                    if language == "code" and noun.value is not None:
                        spelled = str(noun.value)
                    assert spelled.lower() in text, (index, language, fact, text)


def test_every_form_comes_up(texts):
    assert {WORLD.scene(index).form for index in range(300)} == set(FORMS)


@pytest.mark.parametrize(("language", "count"), [("ko", 10_000), ("en", 4_000), ("code", 4_000)])
def test_documents_have_the_promised_size_and_seldom_repeat(language, count):
    texts = list(WORLD.documents(language, count=count))
    assert len(set(texts)) > 0.99 * count
    sizes = sorted(map(len, texts))
    assert sizes[0] >= 40 and sizes[-1] <= 700
    assert (80 if language == "ko" else 120) < sizes[len(sizes) // 2] < 400


@pytest.mark.parametrize(("language", "least"), [("ko", 900), ("en", 900), ("code", 400)])
def test_documents_do_not_read_like_a_form(texts, language, least):
    # What is left of a document when all that is particular to its scene is blotted out.
    skeletons = set()
    for index in range(COUNT):
        text = texts[language, "train"][index]
        for noun in WORLD.scene(index).cast.values():
            text = text.replace(noun.korean if language == "ko" else noun.english, "_")
        skeletons.add(re.sub(r"(?<=_)[은는이가을를과와]\b|[Aa]n(?= _)", "", text))
    assert len(skeletons) > least


def test_code_runs_and_its_assertions_hold(texts):
    for split in SPLITS:
        for text in texts["code", split][:300]:
            space = {"__name__": "world"}
            exec(compile(text, "document", "exec"), space)
            assert "assert " in text
            for function in [value for value in space.values() if callable(value) and getattr(value, "__doc__", None)]:
                if ">>>" in function.__doc__:
                    runner = doctest.DocTestRunner(verbose=False)
                    examples = doctest.DocTestFinder().find(function, "document", module=False, globs=space)
                    assert [runner.run(example).failed for example in examples] == [0]


CLOSED = ("은", "이", "을", "과", "으로", "아", "이에요", "이라는", "이었다", "이었어요", "이다", "이고")
OPEN = ("는", "가", "를", "와", "로", "야", "예요", "라는", "였다", "였어요", "다", "고")
COMMON = (lexicon.JOBS, lexicon.FOODS, lexicon.COLORS, lexicon.HOBBIES, lexicon.PETS, lexicon.SPOTS, lexicon.VEHICLES)


def test_no_particle_disagrees_with_the_word_before_it(texts):
    # An independent reading: the final consonant is found by decomposing the syllable.
    checked = 0
    for split in SPLITS:
        inventories = (*(inventory[split] for inventory in INVENTORIES), *COMMON)
        words = "|".join(noun.korean for inventory in inventories for noun in inventory)
        pattern = re.compile(rf"(?<![가-힣])({words})(?:\(\w+\))?({'|'.join(CLOSED + OPEN)})(?![가-힣])")
        for text in texts["ko", split]:
            for word, particle in pattern.findall(text):
                final = unicodedata.normalize("NFD", word[-1])[2:]
                takes_closed = final not in ("", "\u11af") if particle in ("으로", "로") else bool(final)
                assert (particle in CLOSED) == takes_closed, (word, particle, text)
                checked += 1
    assert checked > 10 * COUNT


def test_an_article_agrees_with_the_word_after_it(texts):
    wrong = re.compile(r"\b(?:[Aa] [aeiou]|[Aa]n [^aeiou])", re.ASCII)
    assert not [match[0] for text in texts["en", "train"] for match in wrong.finditer(text)]


def test_no_pattern_leaves_a_mark_or_a_gap(texts):
    for language in ("ko", "en"):
        for text in texts[language, "train"]:
            assert not re.search(r"[{}\[\]|_]|  | \n| $| [.,?!]", text), text


def test_a_text_keeps_to_one_style(texts):
    for text in texts["ko", "train"]:
        body = text.partition("\n질문:")[0]
        plain, polite = re.findall(r"다\.", body), re.findall(r"요\.", body)
        assert not (plain and polite), text


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="language is 'fr'"):
        WORLD.document("fr", 0)
    with pytest.raises(ValueError, match="split is 'test'"):
        WORLD.document("ko", 0, "test")
    with pytest.raises(ValueError, match="index is -1"):
        WORLD.document("ko", -1)
    with pytest.raises(ValueError, match="kind is 'x'"):
        WORLD.probes("x", 1)
