"""Requests as values: what is read, what is refused, by name."""

import pytest

from hcxjax.serving.calls import CallLimits, chat, completion
from hcxjax.serving.refusals import Refusal
from hcxjax.text.templates import Message

LIMITS = CallLimits(max_tokens=50, prompts=3, samples=4)


def refused(read, **values):
    with pytest.raises(Refusal) as raised:
        read({"model": "m", **values}, LIMITS)
    assert raised.value.status == 400
    return raised.value.param


def test_defaults_are_openai_s():
    got = completion({"model": "m", "prompt": "a"}, LIMITS)
    assert (got.prompts, got.suffix, got.echo) == (("a",), None, False)
    options = got.options
    assert (options.max_tokens, options.samples, options.stop, options.stop_ids) == (16, 1, (), ())
    assert (options.sampling.temperature, options.sampling.top_p, options.sampling.top_k) == (1.0, 1.0, 0)
    assert not (options.seeded or options.stream or options.logprobs or options.usage)
    assert chat({"model": "m", "messages": [{"role": "user", "content": ""}]}, LIMITS).options.max_tokens is None


@pytest.mark.parametrize(
    ("prompt", "read"),
    [
        ("", ("",)),
        (["a", "b"], ("a", "b")),
        ([1, 2], ((1, 2),)),
        ([[1, 2], [3]], ((1, 2), (3,))),
        (["a", [3]], ("a", (3,))),
    ],
)
def test_prompts(prompt, read):
    assert completion({"model": "m", "prompt": prompt}, LIMITS).prompts == read


@pytest.mark.parametrize("prompt", [None, 3, [], [[]], [[], [1]], [1.5], [True], [-1], ["a"] * 4, {"a": 1}, [None]])
def test_prompts_that_are_none(prompt):
    assert refused(completion, prompt=prompt) == "prompt"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", 51), ("max_tokens", 1.5), ("max_tokens", True), ("max_tokens", "3"), ("n", 5), ("n", 0),
        ("logprobs", 2), ("logprobs", True), ("logprobs", -1), ("temperature", -0.1), ("temperature", float("inf")),
        ("temperature", 10**400), ("top_p", 1.1), ("top_k", -2), ("top_k", 2**31), ("min_p", 1.5),
        ("repetition_penalty", 0), ("seed", 1.0), ("seed", 2**63), ("stop", 3), ("stop", ["a", ""]),
        ("stop", "x" * 257), ("stop_token_ids", [1] * 13), ("stop_token_ids", ["a"]), ("stream", 1), ("echo", "yes"),
        ("model", 3), ("suffix", 3), ("stream_options", []), ("best_of", 2), ("logit_bias", {"1": 2}),
        ("tools", [1]), ("unknown", 1),
    ],
)  # fmt: skip
def test_fields_that_cannot_be(field, value):
    assert refused(completion, prompt="a", **{field: value}) == field


def test_stop_strings_that_are_no_unicode_never_reach_the_engine():
    assert refused(completion, prompt="a", stop="a\ud800") == "stop"


def test_within_an_object_the_whole_path_is_named():
    assert refused(completion, prompt="a", stream=True, stream_options={"x": 1}) == "stream_options.x"
    assert refused(completion, prompt="a", stream=True, stream_options={"include_usage": 1}) == (
        "stream_options.include_usage"
    )


def test_null_is_as_good_as_absent():
    fields = (
        "max_tokens",
        "n",
        "seed",
        "stop",
        "stream_options",
        "logit_bias",
        "logprobs",
        "suffix",
        "tools",
        "top_k",
        "x",
    )
    assert completion({"model": "m", "prompt": "a", **dict.fromkeys(fields)}, LIMITS) == completion(
        {"model": "m", "prompt": "a"}, LIMITS
    )


def test_names_of_the_limit_of_an_answer():
    said = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    for fields in ({"max_tokens": 5}, {"max_completion_tokens": 5}, {"max_tokens": 5, "max_completion_tokens": 5}):
        assert chat(said | fields, LIMITS).options.max_tokens == 5
    assert refused(chat, **said, max_tokens=5, max_completion_tokens=6) == "max_tokens"


def test_messages():
    entries = [
        {"role": "developer", "content": "가"},
        {"role": "user", "content": [{"type": "text", "text": "나"}, {"type": "text", "text": "다"}]},
        {"role": "assistant", "content": "라", "tool_calls": None, "refusal": None, "annotations": []},
    ]
    got = chat({"model": "m", "messages": entries}, LIMITS).messages
    assert got == (Message("system", "가"), Message("user", "나다"), Message("assistant", "라"))


@pytest.mark.parametrize(
    ("message", "param"),
    [
        (3, "messages[0]"),
        ({"content": "a"}, "messages[0].role"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "user", "content": 3}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}, "messages[0].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0]"),
        ({"role": "user", "content": ["a"]}, "messages[0].content[0]"),
        ({"role": "user", "content": "a", "name": "n"}, "messages[0].name"),
        ({"role": "assistant", "content": "a", "tool_calls": [{}]}, "messages[0].tool_calls"),
    ],
)
def test_messages_that_are_none(message, param):
    assert refused(chat, messages=[message]) == param


def test_limits_are_checked():
    with pytest.raises(ValueError, match=r"CallLimits\.samples is 0"):
        CallLimits(samples=0)
