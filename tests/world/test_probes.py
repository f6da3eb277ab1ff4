import re
from collections import Counter

import pytest

from hcxjax.world import PROBES, World, names
from hcxjax.world.hangul import final_consonant

WORLD = World()
FACTS = [kind for kind in PROBES if kind != "particle"]
COUNT = 120


@pytest.mark.parametrize("kind", PROBES)
def test_probes_repeat_and_a_longer_list_begins_with_the_shorter(kind):
    probes = WORLD.probes(kind, 40)
    assert probes == World().probes(kind, 40) and probes[:10] == WORLD.probes(kind, 10)
    assert probes != World(1).probes(kind, 40)
    assert len({probe.prompt for probe in probes}) > 35


@pytest.mark.parametrize("kind", PROBES)
def test_alternatives_are_other_answers_of_the_same_form(kind):
    for probe in WORLD.probes(kind, COUNT):
        assert probe.kind == kind and len({probe.answer, *probe.alternatives}) == (2 if kind == "particle" else 3)
        assert {answer.startswith(" ") for answer in (probe.answer, *probe.alternatives)} == {kind != "particle"}
        assert not probe.prompt.endswith((" ", "\n"))


def test_particles_follow_new_names_and_both_forms_are_as_frequent():
    probes = WORLD.probes("particle", COUNT)
    spelled = [noun.korean for kind in (names.PEOPLE, names.PLACES) for noun in kind["validation"]]
    ends = re.compile(f"({'|'.join(spelled)})$")
    closed = 0
    for probe in probes:
        name = ends.search(probe.prompt)[1]
        final = final_consonant(name)
        expects_long = final > 0 and not (final == 8 and probe.answer in ("으로", "로"))
        assert (probe.answer in ("은", "이", "을", "과", "으로")) == expects_long, probe
        assert probe.prompt.count(name) == 1
        closed += expects_long
    assert closed == COUNT / 2
    assert set(Counter(probe.answer for probe in probes).values()) == {COUNT / 10}


@pytest.mark.parametrize("kind", FACTS)
def test_every_answer_stands_in_the_text_and_its_place_says_nothing(kind):
    places = [0, 0, 0]
    for probe in WORLD.probes(kind, COUNT):
        text = re.split("\n질문:|\nQuestion:|\nassert", probe.prompt)[0].lower()
        words = [re.sub(r"^(an?) ", "", answer.strip().lower()) for answer in (probe.answer, *probe.alternatives)]
        found = [re.search(rf"(?<!\w){re.escape(word)}(?![a-z0-9])", text) for word in words]
        assert all(found), probe
        first = found[0].start()
        places[sum(match.start() < first for match in found[1:])] += 1
    assert places == [COUNT / 3] * 3


def test_a_question_is_worded_as_in_documents():
    asked = {re.sub(r"\s+", " ", text) for text in WORLD.documents("ko", "validation", count=1000)}
    assert sum("질문:" in text and "답:" in text for text in asked) > 500
    assert all(probe.prompt.endswith("\n답:") for probe in WORLD.probes("fact_ko", 50))


def test_questions_ask_for_values_and_for_people():
    asked = [bool(re.search("누가|누구", probe.prompt)) for probe in WORLD.probes("fact_ko", COUNT)]
    assert 0.3 < sum(asked) / COUNT < 0.5


def test_code_probes_complete_to_programs_that_hold():
    for probe in WORLD.probes("fact_code", COUNT):
        exec(probe.prompt + probe.answer, {"__name__": "world"})
        with pytest.raises(AssertionError):
            exec(probe.prompt + probe.alternatives[0], {"__name__": "world"})
