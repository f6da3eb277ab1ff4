"""Instruction following: requests as a policy is asked them, answers by rules, and a run that stops on it."""

import dataclasses
from types import SimpleNamespace

import pytest

from hcxjax.evaluation import answers
from hcxjax.evaluation.constraints import keeps, shipped
from hcxjax.evaluation.instructions import ConstrainedRequests, InstructionFollowing, WorldForms
from hcxjax.mesh import Layout
from hcxjax.text.templates import HCXJAX, Message
from hcxjax.train import Progress, Watch
from hcxjax.world import World
from hcxjax.world.dice import Dice


class Bytes:
    """A vocabulary of bytes, in the place of a run's prompts, which give it."""

    end_of_turn = 256

    def vocabulary(self):
        return self

    def form(self, vocabulary):
        return HCXJAX

    def special(self, name):
        return 256 + ("<|endofturn|>", "<|endoftext|>", "<|user|>", "<|assistant|>").index(name)

    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(token for token in ids if token < 256).decode()


@pytest.fixture
def chat():
    return Bytes()


OBJECTIVE = SimpleNamespace(model=SimpleNamespace(max_length=2000), policy=lambda params: params)


@pytest.fixture
def scripted(monkeypatch):
    """An engine that says what the parameters say: a text for each prompt, and whether it comes to an end."""

    class Engine:
        def __init__(self, model, params, vocabulary, settings):
            self.say = params

        def swap(self, params):
            self.say = params

        def complete(self, requests):
            said = [self.say(number, list(request.prompt)) for number, request in enumerate(requests)]
            return [[SimpleNamespace(tokens=tokens, finish=finish)] for tokens, finish in said]

    monkeypatch.setattr(answers, "Engine", Engine)


def test_requests_are_asked_in_the_chat_s_form_and_judged_by_their_rules(scripted, chat):
    vocabulary = chat.vocabulary()
    evaluator = InstructionFollowing(OBJECTIVE, ConstrainedRequests(chat, length=1000), every=1)
    evaluator.start(Layout(), "")
    prompts = []

    def one_word(number, prompt):
        prompts.append(prompt)
        return [*vocabulary.encode("word"), vocabulary.end_of_turn], "stop"

    results = evaluator.evaluate(one_word, 0)
    asked = [[Message("user", request.prompt)] for request in shipped()]
    assert prompts == [HCXJAX.tokens(messages, vocabulary) for messages in asked]
    kept = {"ko": 0, "en": 0}
    for request in shipped():
        kept[request.language] += keeps("word", request.constraints)
    assert results["eval/instructions/followed/ko"] == kept["ko"] / 60
    assert results["eval/instructions/followed/en"] == kept["en"] / 60 > 0
    assert results["eval/instructions/followed"] == pytest.approx(sum(kept.values()) / 120)
    assert results["eval/instructions/length"] == 5 and results["eval/instructions/stop_rate"] == 1

    cut = evaluator.evaluate(lambda number, prompt: (vocabulary.encode("word"), "length"), 1)
    assert cut["eval/instructions/followed"] == 0 == cut["eval/instructions/stop_rate"]


def test_requests_that_are_too_long_are_left_out_and_told(chat, caplog):
    few = ConstrainedRequests(chat, length=60).load()
    assert 0 < len(few.requests) < 120 and max(len(request.tokens) for request in few.requests) == 60
    assert f"{120 - len(few.requests)} of 120 requests have more than 60 tokens" in caplog.text
    with pytest.raises(ValueError, match=r"ConstrainedRequests\.length is 5; no request is as short"):
        ConstrainedRequests(chat, length=5).load()


class WorldPrompts:
    """Instructions of the world."""

    stop_ids = (2,)

    def __init__(self, vocabulary, known=True):
        self.vocabulary = vocabulary
        found = [World().instruction(language, n, "validation") for language in ("ko", "en") for n in range(9)]
        self.instructions = found if known else [None] * 18
        self.tokens, self.sources = [(1, number) for number in range(18)], [one.language for one in found]

    def load(self, split):
        assert split == "validation"
        return self

    def __len__(self):
        return 18

    def batch(self, update, size, seed):
        return list(range(size))


def test_the_world_s_instructions_are_checked_by_form_alone(scripted, chat):
    vocabulary = chat.vocabulary()
    prompts = WorldPrompts(vocabulary)
    evaluator = InstructionFollowing(OBJECTIVE, WorldForms(prompts), every=1)
    evaluator.start(Layout(), "")

    def false_but_of_the_form(number, prompt):
        instruction = prompts.instructions[prompt[1]]
        value = instruction.rivals[0]
        said = instruction.answerer.answer(
            Dice(number),
            instruction.form,
            instruction.relation,
            instruction.subject,
            value,
            instruction.opening,
            False,
        )
        return vocabulary.encode(said), "stop"

    results = evaluator.evaluate(false_but_of_the_form, 0)
    assert results["eval/instructions/followed"] == results["eval/instructions/followed/en"] == 1
    other = [request.follows("") for request in WorldForms(prompts, count=5).load().requests]
    assert other == [False] * 5
    with pytest.raises(ValueError, match="those of 'ko' are no instructions of the world"):
        WorldForms(WorldPrompts(vocabulary, known=False)).load()


def test_a_run_stops_where_following_no_longer_grows():
    watch = Watch("eval/instructions/followed", lower_is_better=False, patience=2)
    progress, stopped = Progress(), []
    for followed in (0.5, 0.6, 0.55, 0.6):
        progress.note(watch, {"eval/instructions/followed": followed})
        stopped.append(progress.patience_over(watch))
    assert stopped == [False, False, False, True] and progress.best == 0.6


@pytest.mark.parametrize("field", ["every", "new_tokens"])
def test_counts_are_whole(chat, field):
    whole = InstructionFollowing(OBJECTIVE, ConstrainedRequests(chat), every=1)
    with pytest.raises(ValueError, match=rf"InstructionFollowing\.{field} is 0"):
        dataclasses.replace(whole, **{field: 0})
