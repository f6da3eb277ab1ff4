"""Records of comparisons in every form, and what no form takes."""

import pytest

from hcxjax.data.dialogue_forms import DialogueError, request_of, transcript
from hcxjax.data.preference_forms import preference_of
from hcxjax.text.templates import Message

ASK, FIRST, REPLY = Message("user", "why?"), Message("user", "hello"), Message("assistant", "hi")
OTHER = Message("assistant", "ho")


def turns(*messages):
    return [message._asdict() for message in messages]


HH = "\n\nHuman: hello\n\nAssistant: hi\n\nHuman: why?\n\nAssistant:"


@pytest.mark.parametrize(
    ("record", "prompt"),
    [
        ({"prompt": "why?"}, [ASK]),
        ({"prompt": "why?", "system": "be brief"}, [Message("system", "be brief"), ASK]),
        ({"prompt": turns(FIRST, REPLY, ASK)}, [FIRST, REPLY, ASK]),
        ({"prompt": HH}, [FIRST, REPLY, ASK]),
        ({"prompt": "Human: why?\n\nAssistant:"}, [ASK]),
        ({"prompt": "Who is the Assistant: he?"}, [Message("user", "Who is the Assistant: he?")]),
        ({"prompt": "Human: a being."}, [Message("user", "Human: a being.")]),
        ({"conversations": [{"from": "human", "value": "why?"}]}, [ASK]),
        ({"messages": turns(FIRST, REPLY, ASK)}, [FIRST, REPLY, ASK]),
        ({"instruction": "why?", "input": ""}, [ASK]),
    ],
)
@pytest.mark.parametrize(
    "answers",
    [
        {"chosen": "a", "rejected": "b"},
        {"chosen": ["a"], "rejected": ["b"]},
        {"chosen": turns(Message("assistant", "a")), "rejected": turns(Message("assistant", "b"))},
        {"chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        {"responses": ["a", "b"], "ranking": [1, 2]},
    ],
)
def test_a_prompt_and_two_answers(record, prompt, answers):
    assert preference_of(record | answers | {"other": 1, "nothing": None}) == (prompt, ["a", "b"], [(0, 1, 0.0)])


def test_every_chosen_answer_is_compared_with_every_rejected_one():
    found = preference_of({"prompt": "why?", "chosen": ["a", "b"], "rejected": ["c", "d", "e"], "margin": 2})
    assert found.answers == ["a", "b", "c", "d", "e"]
    assert found.comparisons == [(one, two, 2.0) for one in (0, 1) for two in (2, 3, 4)]


def test_scores_and_ranks_compare_all_that_differ():
    scored = preference_of({"prompt": "why?", "responses": ["a", "b", "c"], "scores": [1, 3.5, 1]})
    assert scored.comparisons == [(1, 0, 2.5), (1, 2, 2.5)]
    ranked = preference_of({"prompt": "why?", "responses": ["a", "b", "c"], "ranking": [2, 1, 3]})
    assert ranked.comparisons == [(0, 2, 0.0), (1, 0, 0.0), (1, 2, 0.0)]


@pytest.mark.parametrize("form", ["transcripts", "messages", "messages beside their first request"])
def test_whole_conversations_share_their_prompt(form):
    sides = {
        "chosen": [FIRST, REPLY, ASK, Message("assistant", "a")],
        "rejected": [FIRST, REPLY, ASK, Message("assistant", "b")],
    }
    record = {name: turns(*side) for name, side in sides.items()}
    if form == "transcripts":
        record = {"chosen": HH + " a", "rejected": HH + " b"}
    if form == "messages beside their first request":
        record["prompt"] = "hello"
    assert preference_of(record) == ([FIRST, REPLY, ASK], ["a", "b"], [(0, 1, 0.0)])


def test_answers_beside_a_prompt_are_texts_whatever_they_look_like():
    found = preference_of({"prompt": "why?", "chosen": "Human: x\n\nAssistant: y", "rejected": "b"})
    assert found.answers[0] == "Human: x\n\nAssistant: y"


GOOD = {"prompt": "why?", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": "why?", "chosen": "a"}, "no known form"),
        ({"chosen": "a", "rejected": "b"}, "no prompt"),
        (GOOD | {"prompt": turns(REPLY, ASK)}, "it begins with the assistant"),
        (GOOD | {"prompt": "Assistant: hi\n\nHuman: why?\n\nAssistant:"}, "it begins with the assistant"),
        (GOOD | {"prompt": turns(ASK, REPLY)}, "the prompt ends with an answer"),
        (GOOD | {"prompt": "Human: why?\n\nAssistant: so"}, "does not end by opening the answer"),
        (GOOD | {"prompt": " "}, "an empty turn"),
        (GOOD | {"prompt": HH.replace("hello", "")}, "an empty turn"),
        (GOOD | {"prompt": []}, "no request"),
        (GOOD | {"chosen": "\n"}, "an answer is empty"),
        (GOOD | {"rejected": 3}, "rejected is neither a text nor a message"),
        (GOOD | {"chosen": [None]}, "chosen is neither a text nor a message"),
        (GOOD | {"chosen": turns(ASK)}, "chosen does not end with an answer"),
        (GOOD | {"chosen": {"role": "user", "content": "a"}}, "chosen is no answer but of role user"),
        (GOOD | {"rejected": []}, "rejected has no answer"),
        (GOOD | {"margin": "big"}, "margin is no number"),
        (
            {
                "system": "be brief",
                "chosen": turns(ASK, REPLY),
                "rejected": turns(ASK, FIRST._replace(role="assistant")),
            },
            "system beside whole conversations that do not have it",
        ),
        ({"chosen": HH + " a", "rejected": HH.replace("hi", "ho") + " b"}, "the two sides have different prompts"),
        ({"prompt": "why?", "responses": ["a", "b"]}, "responses without scores or ranking"),
        ({"prompt": "why?", "responses": ["a", "b"], "scores": [1]}, "no lists of one length"),
        ({"prompt": "why?", "responses": ["a", "b"], "scores": [1, 1]}, "scores that are all alike"),
        ({"prompt": "why?", "responses": ["a", "b"], "scores": [1, float("nan")]}, "scores is no number"),
    ],
)
def test_records_that_cannot_be_trained_on_say_why(record, reason):
    with pytest.raises(DialogueError, match=reason):
        preference_of(record)


def test_prompts_alone_may_be_transcripts():
    assert request_of({"prompt": HH}) == [FIRST, REPLY, ASK]


def test_texts_that_are_no_transcripts():
    assert transcript("Human: x") is None
    assert transcript("x\n\nHuman: y\n\nAssistant:") is None
    assert transcript("") is None
