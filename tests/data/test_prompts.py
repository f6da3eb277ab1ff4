"""Prompts: what is kept and counted, the ids, their order, and what is refused."""

import dataclasses
import json

import pytest

from hcxjax.data.dialogue_forms import DialogueError, request_of
from hcxjax.data.dialogues import Dialogues
from hcxjax.data.prompts import Prompts
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.templates import HCXJAX, Message
from hcxjax.world import World

USER, ANSWER = {"role": "user", "content": "하나?"}, {"role": "assistant", "content": "둘."}


def write(path, records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return f"jsonl:{path}"


@pytest.fixture
def prompts(tmp_path, model_path):
    def build(records=(), **changes):
        sources = {"file": write(tmp_path / "prompts.jsonl", records)}
        fields = {"sources": sources, "length": 200, "validation_share": 0.0} | changes
        return Prompts(tokenizer=Tokenizer(420, model_path), directory=str(tmp_path / "run"), **fields)

    return build


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"prompt": "a"}, [("user", "a")]),
        ({"prompt": "a", "completion": "b"}, [("user", "a")]),
        ({"prompt": [USER, ANSWER, USER]}, [("user", "하나?"), ("assistant", "둘."), ("user", "하나?")]),
        ({"messages": [USER, ANSWER]}, [("user", "하나?")]),
        ({"messages": [{"role": "system", "content": "s"}, USER]}, [("system", "s"), ("user", "하나?")]),
        ({"instruction": "a", "input": "b", "output": "c"}, [("user", "a\n\nb")]),
        ({"instruction": "a", "input": "", "system": "s"}, [("system", "s"), ("user", "a")]),
        ({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, [("user", "a")]),
        ({"messages": None, "prompt": "a", "chosen": "x"}, [("user", "a")]),
    ],
)
def test_every_form_is_read_up_to_its_last_request(record, messages):
    assert request_of(record) == [Message(*message) for message in messages]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "a"}, "no known form"),
        ({"messages": [ANSWER]}, "no request"),
        ({"messages": [ANSWER, USER]}, "begins with the assistant"),
        ({"prompt": " "}, "an empty turn"),
        ({"messages": [USER, {"role": "assistant", "content": ""}, USER]}, "an empty turn"),
        ({"prompt": 3}, "prompt is int, not a list"),
        ({"instruction": ["a"]}, "instruction is list, not a string"),
        ({"messages": "hi"}, "messages is str, not a list"),
    ],
)
def test_what_is_no_request_is_named(record, reason):
    with pytest.raises(DialogueError, match=reason):
        request_of(record)


def test_a_prompt_ends_where_the_answer_begins(prompts, vocabulary):
    found = prompts([{"messages": [USER, ANSWER, {"role": "user", "content": "셋 <|user|>?"}]}]).load("train")
    (ids,), (text,) = found.tokens, found.texts
    turns = [Message("user", "하나?"), Message("assistant", "둘."), Message("user", "셋 <|user|>?")]
    assert list(ids) == HCXJAX.tokens(turns, vocabulary)
    assert ids[-1] == vocabulary.assistant and ids.count(vocabulary.user) == 2
    assert text == "셋 <|user|>?"
    assert found.stop_ids == (vocabulary.end_of_turn, vocabulary.end_of_text)
    assert found.sources == ["file"] and found.instructions == [None]
    assert found.vocabulary.fingerprint == vocabulary.fingerprint


def test_what_cannot_be_asked_is_counted_by_reason(prompts, caplog):
    records = [
        {"prompt": "하나?"},
        {"prompt": "하나?"},
        {"prompt": "길게 " * 200},
        {"prompt": ""},
        {"messages": [ANSWER, USER]},
        {"messages": [{"role": "tool", "content": "x"}, USER]},
        {"messages": [USER, USER]},
        {"text": "x"},
        '{"prompt": "\\ud800"}',
        "{not json",
        {"prompt": "둘?"},
    ]
    found = prompts(records).load("train")
    assert found.texts == ["하나?", "둘?"]
    assert found.skips.counts == {
        "asked before": 1,
        "more than 200 tokens": 1,
        "an empty turn": 1,
        "it begins with the assistant": 1,
        "a role that the template has not": 1,
        "turns that the template has not": 1,
        "no known form (prompt, messages, conversations, instruction)": 1,
        "lone surrogate": 1,
        "malformed JSON": 1,
    }
    assert "prompts.jsonl:2)" in caplog.text and "it begins with the assistant 1 (first:" in caplog.text
    assert "'tool'" in found.skips.examples["a role that the template has not"]


def test_a_prompt_of_exactly_the_length_is_kept(prompts):
    (ids,) = prompts([{"prompt": "하나?"}]).load("train").tokens
    assert len(prompts([{"prompt": "하나?"}], length=len(ids)).load("train")) == 1
    with pytest.raises(ValueError, match=f"more than {len(ids) - 1} tokens 1"):
        prompts([{"prompt": "하나?"}], length=len(ids) - 1).load("train")


def test_splits_share_no_request_and_agree_with_those_of_dialogues(prompts, tmp_path, model_path):
    records = [{"messages": [{"role": "user", "content": f"{number}?"}, ANSWER]} for number in range(200)]
    several = prompts(records, validation_share=0.3)
    train, held_out = several.load("train"), several.load("validation")
    assert not set(train.texts) & set(held_out.texts) and len(train) + len(held_out) == 200
    assert 30 < len(held_out) < 90
    dialogues = Dialogues(several.sources, several.tokenizer, str(tmp_path / "d"), 200, validation_share=0.3)
    assert len(dialogues.stores("validation")["file"].lengths) == len(held_out)
    assert len(prompts(records, max_prompts=17).load("train")) == 17


def test_the_world_asks_what_can_be_checked(prompts):
    sources = {"ko": "instructions:ko", "en": "instructions:en"}
    asked = prompts(sources=sources, max_prompts=30, length=400)
    train, held_out = asked.load("train"), asked.load("validation")
    assert train.instructions == [World().instruction(name, index) for name in ("en", "ko") for index in range(30)]
    assert held_out.instructions[0] == World().instruction("en", 0, "validation")
    assert train.texts == [instruction.prompt for instruction in train.instructions]
    assert train.sources == ["en"] * 30 + ["ko"] * 30
    familiar = dataclasses.replace(asked, world=World(names="train")).load("validation")
    assert familiar.instructions[0] == World(names="train").instruction("en", 0, "validation")


def test_every_epoch_asks_everything_once_in_an_order_of_its_own(prompts):
    found = prompts([{"prompt": f"{number}?"} for number in range(10)]).load("train")
    order = [number for update in range(10) for number in found.batch(update, 4, 7)]
    epochs = [order[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 4
    assert found.batch(3, 4, 7) == order[12:16] and found.batch(6, 2, 7) == order[12:14]
    assert found.batch(0, 10, 8) != order[:10]
    assert len(found.batch(0, 25, 7)) == 25


def test_other_prompts_have_another_fingerprint(prompts):
    first = prompts([{"prompt": "하나?"}, {"prompt": "둘?"}]).load("train").fingerprint
    assert prompts([{"prompt": "하나?"}, {"prompt": "둘?"}]).load("train").fingerprint == first
    assert prompts([{"prompt": "둘?"}, {"prompt": "하나?"}]).load("train").fingerprint != first
    assert prompts([{"prompt": "하나?"}]).load("train").fingerprint != first


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {}}, r"Prompts\.sources is empty"),
        ({"sources": {"a b": "jsonl:x"}}, "the name 'a b' must be letters"),
        ({"sources": {"a": "world:ko"}}, "a is 'world:ko'; it must be jsonl:PATH, parquet:PATH or instructions:LANG"),
        ({"sources": {"a": "instructions:ko"}}, r"set Prompts\.max_prompts"),
        ({"sources": {"a": "instructions:fr"}, "max_prompts": 3}, "the world speaks ko and en"),
        ({"template": "seed"}, r"has no special <\|im_start\|>"),
        ({"template": "chatml"}, r"Prompts\.template is 'chatml'"),
        ({"validation_share": 1}, r"Prompts\.validation_share is 1"),
        ({"length": 0}, r"Prompts\.length is 0"),
        ({"max_prompts": 0}, r"Prompts\.max_prompts is 0"),
        ({"length": 3}, "have no prompt of train: left out were more than 3 tokens 1"),
        ({"tokenizer": Tokenizer(420)}, r"Tokenizer\.path is None"),
    ],
)
def test_impossible_prompts_are_named(prompts, changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(prompts([{"prompt": "하나?"}]), **changes).load("train")


def test_no_split_has_another_name(prompts):
    with pytest.raises(ValueError, match="split 'test' is unknown"):
        prompts([{"prompt": "a"}]).load("test")
