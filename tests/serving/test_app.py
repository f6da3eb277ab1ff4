"""The server as the openai client sees it."""

import openai
import pytest
from openai import AsyncOpenAI

from tests.serving.fakes import KEY, text_for

MODEL = "fake/korean"


def written(house, prompt, tokens=40, seed=0, sample=0):
    ids = [house.served.vocabulary.end_of_text, *house.served.vocabulary.encode(prompt)]
    vocabulary = house.served.vocabulary
    text = vocabulary.decode(vocabulary.encode(text_for(ids, seed, sample))[:tokens])
    return text.rstrip("\ufffd")


def test_models(client):
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "hcxjax"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-4'"):
        client.models.retrieve("gpt-4")


def test_completion(client, house):
    got = client.completions.create(model=MODEL, prompt="민준은 ", max_tokens=40, seed=7)
    assert got.object == "text_completion"
    assert got.id.startswith("cmpl-")
    assert got.model == MODEL
    (choice,) = got.choices
    assert choice.text == written(house, "민준은 ", seed=7)
    assert choice.finish_reason == "length"
    assert choice.logprobs is None
    assert got.usage.prompt_tokens == 1 + len(house.served.vocabulary.encode("민준은 "))
    assert got.usage.completion_tokens == 40
    assert got.usage.total_tokens == got.usage.prompt_tokens + 40


def test_sixteen_tokens_unless_asked_for(client):
    assert client.completions.create(model=MODEL, prompt="a").usage.completion_tokens == 16


def test_prompts_and_samples_in_order(client, house):
    got = client.completions.create(model=MODEL, prompt=["가", "나", "다"], n=2, max_tokens=20, seed=1)
    expected = [written(house, prompt, 20, 1, sample) for prompt in "가나다" for sample in (0, 1)]
    assert [choice.index for choice in got.choices] == list(range(6))
    assert [choice.text for choice in got.choices] == expected
    assert len(set(expected)) == 6
    assert got.usage.completion_tokens == 120
    assert got.usage.prompt_tokens == sum(1 + len(house.served.vocabulary.encode(prompt)) for prompt in "가나다")


def test_token_ids_are_taken_as_they_are(client, house):
    vocabulary = house.served.vocabulary
    ids = [vocabulary.user, *vocabulary.encode("안녕")]
    client.completions.create(model=MODEL, prompt=ids, max_tokens=2)
    assert house.engine.requests[-1].prompt == tuple(ids)
    client.completions.create(model=MODEL, prompt=[ids, ids[1:]], max_tokens=2)
    assert [request.prompt for request in house.engine.requests[-2:]] == [tuple(ids), tuple(ids[1:])]


def test_what_spells_a_special_stays_text(client, house):
    client.completions.create(model=MODEL, prompt="<|user|>", max_tokens=2)
    ids = house.engine.requests[-1].prompt
    assert house.served.vocabulary.user not in ids
    assert house.served.vocabulary.decode(ids) == "<|user|>"


def test_suffix_fills_in(client, house):
    client.completions.create(model=MODEL, prompt="앞", suffix="뒤", max_tokens=2)
    vocabulary = house.served.vocabulary
    before, after = vocabulary.encode("앞"), vocabulary.encode("뒤")
    ids = (vocabulary.end_of_text, vocabulary.fim_prefix, *before, vocabulary.fim_suffix, *after, vocabulary.fim_middle)
    assert house.engine.requests[-1].prompt == ids


def test_sampling_reaches_the_engine(client, house):
    extra = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.2, "stop_token_ids": [9]}
    client.completions.create(
        model=MODEL, prompt="a", max_tokens=2, temperature=0.3, top_p=0.8, seed=-3, stop="끝", extra_body=extra
    )
    request = house.engine.requests[-1]
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.3, 5, 0.8, 0.1)
    assert (sampling.repetition_penalty, sampling.seed) == (1.2, 2**32 - 3)
    assert (request.stop, request.stop_ids) == (("끝",), (house.served.vocabulary.end_of_text, 9))
    assert (request.stream, request.new_tokens, request.samples) == (0, 2, 1)


def test_without_a_seed_every_prompt_has_its_own(client, house):
    client.completions.create(model=MODEL, prompt=["a", "a"], max_tokens=2)
    one, other = house.engine.requests[-2:]
    assert one.sampling.seed != other.sampling.seed
    client.completions.create(model=MODEL, prompt=["a", "a"], max_tokens=2, seed=5)
    assert [request.sampling.seed for request in house.engine.requests[-2:]] == [5, 5]


def test_stop(client, house):
    whole = written(house, "a", 60)
    got = client.completions.create(model=MODEL, prompt="a", max_tokens=60, temperature=0, stop=["없다", whole[20:24]])
    assert got.choices[0].text == whole[: whole.index(whole[20:24])]
    assert got.choices[0].finish_reason == "stop"
    assert got.usage.completion_tokens < 60


def test_echo(client, house):
    got = client.completions.create(model=MODEL, prompt=["가 ", "나 "], max_tokens=9, echo=True, temperature=0)
    assert [choice.text for choice in got.choices] == [prompt + written(house, prompt, 9) for prompt in ("가 ", "나 ")]
    parts = client.completions.create(model=MODEL, prompt="가 ", max_tokens=9, echo=True, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in parts) == "가 " + written(house, "가 ", 9)


@pytest.mark.parametrize("given", [0, 1])
def test_logprobs(client, house, given):
    got = client.completions.create(model=MODEL, prompt="가", max_tokens=30, logprobs=given, temperature=0).choices[0]
    assert len(got.logprobs.tokens) == 30
    assert got.logprobs.token_logprobs == [-0.5] * 30
    assert got.logprobs.text_offset[0] == 0
    assert got.logprobs.text_offset == sorted(got.logprobs.text_offset)
    assert len(got.text) - 1 <= got.logprobs.text_offset[-1] <= len(got.text)
    parts = client.completions.create(
        model=MODEL, prompt="가", max_tokens=30, logprobs=given, temperature=0, stream=True
    )
    pieces = [part.choices[0].logprobs for part in parts]
    assert [offset for piece in pieces for offset in piece.text_offset] == got.logprobs.text_offset
    assert [token for piece in pieces for token in piece.tokens] == got.logprobs.tokens


@pytest.mark.parametrize("seed", range(4))
def test_streams_cut_no_character_and_add_up(client, house, seed):
    arguments = {"model": MODEL, "prompt": f"한글 {seed}", "max_tokens": 150, "seed": seed}
    house.engine.round_seconds = 0.004
    whole = client.completions.create(**arguments)
    parts = list(client.completions.create(**arguments, stream=True, stream_options={"include_usage": True}))
    *parts, last = parts
    assert "".join(part.choices[0].text for part in parts) == whole.choices[0].text
    assert len(parts) > 3
    assert not any("\ufffd" in part.choices[0].text for part in parts)
    assert any(ord(character) > 0xFFFF for character in whole.choices[0].text) or seed
    assert [part.choices[0].finish_reason for part in parts] == [None] * (len(parts) - 1) + ["length"]
    assert {part.id for part in parts} == {last.id}
    assert all(part.usage is None and "usage" in part.model_fields_set for part in parts)
    assert last.choices == []
    assert last.usage == whole.usage


def test_a_stream_of_several(client, house):
    texts = [""] * 4
    for part in client.completions.create(model=MODEL, prompt=["가", "나"], n=2, max_tokens=30, seed=3, stream=True):
        assert "usage" not in part.model_fields_set
        texts[part.choices[0].index] += part.choices[0].text
    assert texts == [written(house, prompt, 30, 3, sample) for prompt in "가나" for sample in (0, 1)]


SAID = [{"role": "system", "content": "짧게"}, {"role": "user", "content": [{"type": "text", "text": "안녕?"}]}]


def test_chat(client, house):
    got = client.chat.completions.create(model=MODEL, messages=SAID, max_completion_tokens=30, temperature=0)
    assert got.object == "chat.completion"
    message = got.choices[0].message
    assert (message.role, message.refusal, got.choices[0].finish_reason) == ("assistant", None, "length")
    request = house.engine.requests[-1]
    vocabulary = house.served.vocabulary
    assert (
        vocabulary.decode(request.prompt, specials=True)
        == "<|endoftext|>짧게\n\n<|user|>안녕?<|endofturn|>\n<|assistant|>"
    )
    assert set(request.stop_ids) == {vocabulary.end_of_text, vocabulary.end_of_turn}
    assert message.content == vocabulary.decode(vocabulary.encode(text_for(request.prompt, 0, 0))[:30]).rstrip("\ufffd")
    assert (got.usage.prompt_tokens, got.usage.completion_tokens) == (len(request.prompt), 30)
    again = [*SAID, message.model_dump(), {"role": "user", "content": "또"}]
    client.chat.completions.create(model=MODEL, messages=again, max_tokens=2)
    assert message.content in vocabulary.decode(house.engine.requests[-1].prompt)


def test_a_chat_goes_on_to_the_limit_or_the_context(client, house):
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])
    assert house.engine.requests[-1].new_tokens == 200
    client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "ab " * 60}])
    request = house.engine.requests[-1]
    assert request.new_tokens == house.engine.context - len(request.prompt) < 200


def test_a_chat_s_stream(client, house):
    arguments = {"model": MODEL, "messages": SAID, "max_tokens": 80, "n": 2, "seed": 4}
    whole = client.chat.completions.create(**arguments)
    *parts, last = client.chat.completions.create(**arguments, stream=True, stream_options={"include_usage": True})
    for index in (0, 1):
        mine = [part.choices[0] for part in parts if part.choices[0].index == index]
        assert mine[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in mine) == whole.choices[index].message.content
        assert [choice.finish_reason for choice in mine[-2:]] == [None, "length"]
    assert last.usage == whole.usage


def test_a_chat_s_logprobs(client, house):
    got = client.chat.completions.create(model=MODEL, messages=SAID, max_tokens=12, logprobs=True, temperature=0)
    content = got.choices[0].logprobs.content
    assert [entry.logprob for entry in content] == [-0.5] * 12
    whole = b"".join(bytes(entry.bytes) for entry in content)
    assert whole.decode(errors="ignore") == got.choices[0].message.content


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}], "tools is not supported"),
        ("response_format", {"type": "json_object"}, "response_format is not supported"),
        ("logit_bias", {"3": 1}, "logit_bias is not supported"),
        ("presence_penalty", 0.5, "presence_penalty is not supported"),
        ("frequency_penalty", -1, "frequency_penalty is not supported"),
        ("audio", {"voice": "x"}, "audio is not supported"),
        ("top_logprobs", 3, "top_logprobs is not supported"),
        ("max_tokens", 0, "max_tokens is 0; it must be a whole number of at least 1 and at most 200"),
        ("max_tokens", 201, "at most 200"),
        ("n", 9, "n is 9"),
        ("temperature", 2.1, "temperature is 2.1; it must be a number from 0 to 2"),
        ("temperature", "hot", "temperature is 'hot'"),
        ("top_p", 0, "top_p is 0.0; it must be above 0"),
        ("stop", ["a"] * 5, "at most 4"),
        ("stop", [""], "of 1 to 256 characters"),
        ("seed", 2**70, "seed is"),
        ("temprature", 1, "unknown field 'temprature'"),
        ("stream_options", {"include_usage": True}, "set stream"),
        ("stop_token_ids", [420_000], "stop_token_ids has an id outside"),
        ("messages", [{"role": "robot", "content": "a"}], "role 'robot'"),
        ("messages", [{"role": "user", "content": [{"type": "image_url"}]}], "of type 'text'"),
        ("messages", [], "not empty"),
    ],
)
def test_mistakes_are_named(client, field, value, message):
    with pytest.raises(openai.BadRequestError, match=message.replace("[", r"\[")) as raised:
        client.chat.completions.create(model=MODEL, messages=SAID, extra_body={field: value})
    assert raised.value.param.startswith(field)
    assert raised.value.type == "invalid_request_error"


def test_what_asks_for_nothing_is_let_through(client):
    neutral = {"logit_bias": {}, "presence_penalty": 0, "frequency_penalty": 0.0, "response_format": {"type": "text"},
               "tools": [], "tool_choice": "none", "top_logprobs": 0, "user": "u", "stop": None, "n": None}  # fmt: skip
    client.chat.completions.create(model=MODEL, messages=SAID, max_tokens=2, extra_body=neutral)


@pytest.mark.parametrize(
    ("arguments", "message", "param"),
    [
        ({"prompt": "a", "logprobs": 2}, "logprobs is not supported: only the tokens written", "logprobs"),
        ({"prompt": "a", "best_of": 3}, "best_of is not supported", "best_of"),
        ({"prompt": "a", "logprobs": 1, "echo": True}, "does not go together with logprobs", "echo"),
        ({"prompt": []}, "prompt is", "prompt"),
        ({"prompt": ["a"] * 17}, "at most 16", "prompt"),
        ({"prompt": [500000]}, "outside 0..", "prompt"),
        ({"prompt": ["a", 3]}, r"prompt\[1\]", "prompt"),
        ({"prompt": [3], "suffix": "b"}, "the prompt must be text", "suffix"),
        ({"prompt": "뷁쀍 " * 60}, "do not fit the model's context of 256", "prompt"),
        ({"prompt": "가" * 100_000}, "the context of 256 tokens holds", "prompt"),
        ({"prompt": "ab " * 40, "max_tokens": 190}, "do not fit", "max_tokens"),
    ],
)
def test_completions_that_cannot_be(client, arguments, message, param):
    with pytest.raises(openai.BadRequestError, match=message) as raised:
        client.completions.create(model=MODEL, **arguments)
    assert raised.value.param == param


def test_a_conversation_that_cannot_fit_is_refused_before_it_is_tokenised(client, house, monkeypatch):
    monkeypatch.setattr(type(house.served.vocabulary), "encode", lambda *_: 1 / 0)
    most = house.engine.context * int(house.served.vocabulary.byte_lengths.max())
    turn = [{"role": "user", "content": "가" * (most // 2)}, {"role": "assistant", "content": "나"}]
    with pytest.raises(openai.BadRequestError, match="tokens holds"):
        client.chat.completions.create(model=MODEL, messages=[*turn, *turn, turn[0]])


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.chat.completions.create(model="gpt-4", messages=SAID)
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_no_template_no_chat(client, house):
    template = house.served.template
    object.__setattr__(house.served, "template", None)
    with pytest.raises(openai.BadRequestError, match="no chat template"):
        client.chat.completions.create(model=MODEL, messages=SAID)
    object.__setattr__(house.served, "template", template)


def test_the_key(house):
    for key in ("wrong", KEY + "x", KEY[:-1]):
        with openai.OpenAI(base_url=house.url, api_key=key, max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError) as raised:
                stranger.models.list()
            assert raised.value.code == "invalid_api_key"
            assert KEY not in str(raised.value)


@pytest.mark.anyio
async def test_the_asynchronous_client(house):
    async with AsyncOpenAI(base_url=house.url, api_key=KEY, max_retries=0) as client:
        text = ""
        async for part in await client.completions.create(
            model=MODEL, prompt="비동기", max_tokens=30, seed=2, stream=True
        ):
            text += part.choices[0].text
        assert text == written(house, "비동기", 30, 2)
        got = await client.completions.create(model=MODEL, prompt="비동기", max_tokens=30, seed=2)
        assert got.choices[0].text == text


@pytest.fixture
def anyio_backend():
    return "asyncio"
