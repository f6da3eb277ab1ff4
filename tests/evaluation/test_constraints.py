"""Every rule on answers that keep it and answers that do not, and the requests that come with the project."""

import json
from collections import Counter

import pytest

from hcxjax.evaluation.constraints import CONSTRAINTS, Constrained, keeps, read, shipped

CASES = {
    "characters": (4, ["네 글자", " abcd\n"], ["abc", "abcde"]),
    "most_characters": (3, ["abc", "가나다", " a "], ["abcd"]),
    "least_characters": (3, ["abc"], ["ab", "ab  "]),
    "words": (2, ["two words", "두 단어", "a\nb"], ["one", "a b c"]),
    "most_words": (2, ["one", "a b"], ["a b c"]),
    "least_words": (2, ["a b", "a b c"], ["one"]),
    "sentences": (
        2,
        ["One. Two.", "하나예요. 둘이에요!", "First\nsecond", '"Yes." No.'],
        ["One.", "A. B. C.", "Pi is 3.1"],
    ),
    "most_sentences": (1, ["One.", "no end", "It costs 3.50 now.", "Wait..."], ["One. Two."]),
    "least_sentences": (2, ["One. Two. Three."], ["One, two."]),
    "lines": (2, ["a\nb", "a\n\nb"], ["a", "a\nb\nc"]),
    "paragraphs": (2, ["a\nb\n\nc", "a\n \nb"], ["a\nb", "a"]),
    "bullets": (2, ["- a\n- b", "* a\n* b", "Here:\n- a\n- b"], ["- a", "-a\n-b", "a\nb", "- a\n- b\n- c"]),
    "numbered": (2, ["1. a\n2. b", "1) a\n2) b"], ["1. a", "2. a\n1. b", "1. a\n2. b\n3. c", "1. a\n2."]),
    "items": (3, ["a, b, c", "사과, 배, 귤."], ["a, b", "a,, b", "a, b, c,"]),
    "language": (
        "ko",
        ["안녕하세요.", "맞아요 OK, 그렇게 합시다 정말로요 꼭 내일 만나요"],
        ["hi", "안녕 hi", "123"],
    ),
    "begins_with": ("Of course", ["Of course, yes."], ["of course", "Well. Of course"]),
    "ends_with": ("?", ["Why?", "Why? "], ["Why? Because."]),
    "contains": (["a", "b"], ["cab"], ["car"]),
    "without": ([",", "!"], ["plain."], ["a, b", "no!"]),
    "polite": (True, ["네, 갑니다. 고마워요."], ["그래. 고마워요.", "간다."]),
    "lowercase": (True, ["all low, 1.", "é"], ["Low", "123", "가나"]),
    "uppercase": (True, ["LOUD!", "A 1"], ["Loud", "123", "가나"]),
    "number": (True, ["15", "-3.5", "1,024", "7."], ["15 days", "fifteen", "1 2"]),
    "quoted": (True, ['"Yes."', "“네.”"], ["Yes", '"a" and "b"', '""', '"a'][:3]),
    "json": (["a", "b"], ['{"a": 1, "b": null}'], ['{"a": 1}', "[1]", "{a: 1}", "so: {}", "[" * 9999]),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_a_rule_tells_answers_that_keep_it_from_others(name):
    argument, good, bad = CASES[name]
    assert [text for text in good if not keeps(text, {name: argument})] == []
    assert [text for text in (*bad, "", " \n") if keeps(text, {name: argument})] == []


def test_json_without_keys_is_any_object_or_list():
    assert keeps("[1, 2]", {"json": []}) and keeps('{"x": 1}', {"json": []})
    assert not keeps("3", {"json": []}) and not keeps('"text"', {"json": []})


def test_all_constraints_must_be_kept():
    both = {"sentences": 1, "ends_with": "!"}
    assert keeps("Go!", both)
    assert not keeps("Go. Go!", both) and not keeps("Go.", both)


def test_the_requests_that_come_with_the_project():
    requests = shipped()
    assert Counter(request.language for request in requests) == {"ko": 60, "en": 60}
    assert len({request.prompt for request in requests}) == 120
    asked = Counter(name for request in requests for name in request.constraints)
    assert set(asked) == set(CONSTRAINTS)
    for request in requests:
        hangul = sum("가" <= letter <= "힣" for letter in request.prompt)
        assert (hangul > 8) == (request.language == "ko")
        for name in ("begins_with", "ends_with"):
            argument = request.constraints.get(name, "")
            assert argument in request.prompt or argument in "?!"


ANSWERS = {"ko": "네, 그렇게 하겠습니다. 감사합니다.", "en": "Sure, here is a long answer that goes on. Thank you."}


def test_no_single_answer_follows_many():
    """A policy that says one thing always must not look as if it followed."""
    for answer in (*ANSWERS.values(), "예", "서울", "a", "1", "- a\n- b", '"a"', "{}"):
        assert sum(keeps(answer, request.constraints) for request in shipped()) < 45, answer


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"language": "fr", "prompt": "a", "constraints": {"words": 1}}, "line 1: .* needs a language"),
        ({"language": "ko", "prompt": " ", "constraints": {"words": 1}}, "needs a language .*, a prompt"),
        ({"language": "ko", "prompt": "a", "constraints": {}}, "constraints"),
        ({"language": "ko", "prompt": "a", "constraints": {"wrds": 1}}, "the constraint 'wrds' is unknown"),
        ({"language": "ko", "prompt": "a", "constraints": {"words": 0}}, "words has the argument 0"),
        ({"language": "ko", "prompt": "a", "constraints": {"words": True}}, "words has the argument True"),
        ({"language": "ko", "prompt": "a", "constraints": {"without": ","}}, "without has the argument ','"),
        ({"language": "ko", "prompt": "a", "constraints": {"contains": []}}, r"contains has the argument \[\]"),
        ({"language": "ko", "prompt": "a", "constraints": {"language": "fr"}}, "language has the argument 'fr'"),
        ({"language": "ko", "prompt": "a", "constraints": {"polite": False}}, "polite has the argument False"),
        ({"language": "ko", "prompt": "a"}, "constraints"),
    ],
)
def test_what_is_no_request_is_named(line, message):
    with pytest.raises(ValueError, match=message):
        read(json.dumps(line))


def test_a_request_is_what_it_was_read_from():
    line = {"language": "en", "prompt": "Hi!", "constraints": {"words": 1}}
    assert read(json.dumps(line)) == (Constrained("en", "Hi!", {"words": 1}),)
