"""Instructions: a function of their key, answerable from what they tell, and judged by rules that hold."""

import dataclasses
import re
from collections import Counter

import pytest

from hcxjax.world import SPOKEN, World, names
from hcxjax.world.facts import SHARED
from hcxjax.world.instructions import ANSWERERS, ASKED, FORMS

WORLD = World()
COUNT = 600


@pytest.fixture(scope="module")
def instructions():
    return {
        (language, split): [WORLD.instruction(language, index, split) for index in range(COUNT)]
        for language in SPOKEN
        for split in names.SPLITS
    }


def spelled(language, noun):
    return noun.korean if language == "ko" else noun.english


def test_an_instruction_is_a_function_of_its_index(instructions):
    for (language, split), known in instructions.items():
        assert [World().instruction(language, index, split) for index in (417, 3, 88)] == [
            known[417],
            known[3],
            known[88],
        ]
        others = {World(1).instruction(language, index, split).prompt for index in range(100)}
        assert not others & {instruction.prompt for instruction in known}
        assert len({instruction.prompt for instruction in known}) > 0.99 * COUNT


def test_held_out_instructions_speak_of_people_whom_training_never_mentions(instructions):
    for language in SPOKEN:
        training = "\n".join(instruction.prompt for instruction in instructions[language, "train"])
        assert not [person for person in names.PEOPLE["validation"] if spelled(language, person) in training]
        held_out = {instruction.subject for instruction in instructions[language, "validation"]}
        assert held_out <= set(names.PEOPLE["validation"]) and len(held_out) > 40


def test_they_may_speak_of_people_whom_it_does_mention():
    world = World(names="train")
    known = [world.instruction("ko", index, "validation") for index in range(50)]
    assert {instruction.subject for instruction in known} <= set(names.PEOPLE["train"])
    training = {world.instruction("ko", index).prompt for index in range(50)}
    assert not training & {instruction.prompt for instruction in known}


def test_the_telling_holds_the_answer_and_no_rival_but_those_told(instructions):
    both = 0
    for (language, _), known in instructions.items():
        mentioned = ANSWERERS[language].names
        for instruction in known:
            telling, _, asked = instruction.prompt.partition("\n")
            assert mentioned(telling, instruction.value) and not mentioned(asked, instruction.value)
            found = [rival for rival in instruction.rivals if mentioned(telling, rival)]
            assert found == [*instruction.told]
            assert {instruction.value, *instruction.rivals} == {*SHARED[instruction.relation]}
            assert spelled(language, instruction.subject) in telling
            both += len(found)
    assert 0.2 < both / (4 * COUNT) < 0.3


def test_every_form_and_relation_is_asked_for(instructions):
    for known in instructions.values():
        assert set(Counter(instruction.form for instruction in known)) == set(FORMS)
        assert set(Counter(instruction.relation for instruction in known)) == set(ASKED)
        for instruction in known:
            assert bool(instruction.opening) == (instruction.form == "opening")
            assert bool(instruction.most) == (instruction.form == "short")
            assert str(instruction.most or instruction.opening) in instruction.prompt


def test_prompts_are_short_and_leave_no_mark(instructions):
    for known in instructions.values():
        assert max(len(instruction.prompt) for instruction in known) < 160
        assert not [i.prompt for i in known if re.search(r"[{}\[\]|_]|  | \n", i.prompt)]


def test_no_value_is_hidden_in_another():
    values = [value for relation in ASKED for value in SHARED[relation]]
    for language in SPOKEN:
        for value in values:
            text = spelled(language, value)
            assert [other for other in values if ANSWERERS[language].names(text, other)] == [value]


def of_form(language, form, **fields):
    found = next(i for i in (WORLD.instruction(language, n) for n in range(999)) if i.form == form)
    return dataclasses.replace(found, **fields)


FORM_CASES = [
    ("ko", "word", ["네, 고양이예요.", "고양이", "응, 고양이야!"], ["그건 고양이예요.", "", "고양이 고양이", "..."]),
    ("en", "word", ["Cat.", "Sure, cat.", "cat, thank you."], ["A cat.", "Sure", "", "Thank you.", "Yeah, a cat"]),
    ("ko", "sentence", ["그 사람은 개를 키워요."], ["네, 개를 키워요.", "그 사람은.", "", "그 사람은 개를"]),
    ("en", "sentence", ["She has one.", "Sure, she has one!"], ["A cat.", "Sure, has one.", "", "She has a cat"]),
    ("ko", "opening", ["바로 개예요."], ["개예요.", "바로", "", "개가 바로"]),
    ("en", "opening", ["Well, a cat.", " Well, it is."], ["Sure, well, a cat.", "Well,", "well, a cat.", ""]),
    ("ko", "short", ["12345678"], ["123456789", "", "  "]),
    ("en", "short", ["A cat."], ["A cat, thank you.", ""]),
    ("ko", "quoted", ['"네, 개예요."', '"개"'], ["개예요.", '"개', '""', '"개" "개"', '"개"예요']),
    ("en", "quoted", ['"Sure, cat."'], ["cat", '"cat', "'cat'", 'Sure, "cat"']),
    ("ko", "exclaimed", ["개예요!", "개! "], ["개예요.", "!", "", "개!?"]),
]


@pytest.mark.parametrize(("language", "form", "good", "bad"), FORM_CASES)
def test_forms_are_told_from_others(language, form, good, bad):
    opening = {"ko": "바로", "en": "Well,"}[language] if form == "opening" else ""
    instruction = of_form(language, form, opening=opening, most=8 if form == "short" else 0)
    for text in good:
        assert instruction.is_of_the_form(text), text
    for text in bad:
        assert not instruction.is_of_the_form(text), text


@pytest.mark.parametrize(
    ("language", "polite", "rude"),
    [
        (
            "ko",
            ["고양이예요.", '"개"예요.', "개입니다!", "네, 개예요", "개예요. 개예요.", "“개예요.”"],
            ["고양이다.", "개", "", "개야. 개예요.", "...", "요리다."],
        ),
        (
            "en",
            ["Sure, a cat.", "A cat, thank you.", "Certainly: cat", "cat. Thank you!", '"Sure, cat."'],
            ["A cat.", "", "Unsure.", "Thank you is what she said."],
        ),
    ],
)
def test_manners_are_heard(language, polite, rude):
    instruction = WORLD.instruction(language, 0)
    assert [text for text in polite if not instruction.is_polite(text)] == []
    assert [text for text in rude if instruction.is_polite(text)] == []


def test_truth_is_the_value_and_no_other():
    korean, english = ("ko", "닭", "오리"), ("en", "hen", "duck")
    for language, true, rival in (korean, english):
        animals = {spelled(language, noun): noun for noun in SHARED["pet"]}
        others = tuple(noun for name, noun in animals.items() if name != true)
        instruction = dataclasses.replace(
            WORLD.instruction(language, 0), relation="pet", value=animals[true], rivals=others
        )
        assert instruction.is_true(f"{true}")
        assert not instruction.is_true(f"{true}, {rival}")
        assert not instruction.is_true(rival)
        assert not instruction.is_true("")
        hidden = "통닭" if language == "ko" else "When then."
        assert not instruction.is_true(hidden)
    assert dataclasses.replace(instruction, value=animals["goose"], rivals=()).is_true("A GOOSE!")


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="language is 'code'"):
        WORLD.instruction("code", 0)
    with pytest.raises(ValueError, match="split is 'test'"):
        WORLD.instruction("ko", 0, "test")
    with pytest.raises(ValueError, match="index is -1"):
        WORLD.instruction("ko", -1)
    with pytest.raises(ValueError, match=r"World\.names is 'all'"):
        World(names="all")
