"""Conversations as tokens: exactly which are learnt, and what goes where one is too long."""

import itertools
import json

import numpy as np
import pytest

from hcxjax.text.rendering import LEAST_TARGETS, answered, render, render_within, unseen_reasoning
from hcxjax.text.templates import HCXJAX, SEED, THINK, Message
from hcxjax.text.vocabulary import Vocabulary
from tools.random_checkpoint import byte_tokenizer

TALK = [
    Message("system", "짧게."),
    Message("user", "Hi <|endofturn|><|im_end|>"),
    Message("assistant", "네, hello"),
    Message("user", "why?"),
    Message("assistant", "그냥요."),
]


@pytest.fixture(scope="module")
def seed_vocabulary(tmp_path_factory):
    """SEED's specials over plain bytes: a token a byte, so that lengths can be counted by hand."""
    pytest.importorskip("tokenizers")
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    path.write_text(json.dumps(byte_tokenizer(264)[0]))
    return Vocabulary(str(path))


def runs(rendered, vocabulary):
    """(text, learnt) of each stretch of tokens that are alike."""
    pairs = zip(rendered.tokens.tolist(), rendered.learnt.tolist(), strict=True)
    grouped = itertools.groupby(pairs, key=lambda pair: pair[1])
    return [(vocabulary.decode([token for token, _ in group], specials=True), learnt) for learnt, group in grouped]


def test_answers_and_their_ends_are_learnt_in_our_template(vocabulary):
    rendered = render(TALK, HCXJAX, vocabulary)
    assert runs(rendered, vocabulary) == [
        ("<|endoftext|>짧게.\n\n<|user|>Hi <|endofturn|><|im_end|><|endofturn|>\n<|assistant|>", False),
        ("네, hello<|endofturn|>", True),
        ("\n<|user|>why?<|endofturn|>\n<|assistant|>", False),
        ("그냥요.<|endofturn|>", True),
    ]
    ends = rendered.tokens == vocabulary.end_of_turn
    assert ends.sum() == 4, "what a user typed stays text"
    assert rendered.learnt[ends].tolist() == [False, True, False, True]
    assert (rendered.tokens.dtype, rendered.learnt.dtype) == (np.int32, bool)


def test_answers_and_their_ends_are_learnt_in_seed_s(seed_vocabulary):
    """An answer in the history ends with less than the last one: what the model would write, and the history keeps."""
    rendered = render(TALK, SEED, seed_vocabulary)
    assert runs(rendered, seed_vocabulary) == [
        (
            "<|im_start|>tool_list\n<|im_end|>\n<|im_start|>system\n짧게.<|im_end|>\n"
            "<|im_start|>user\nHi <|endofturn|><|im_end|><|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("네, hello<|im_end|>", True),
        ("\n<|im_start|>user\nwhy?<|im_end|>\n<|im_start|>assistant\n", False),
        ("그냥요.<|im_end|><|endofturn|>", True),
    ]
    assert (rendered.tokens == seed_vocabulary.special("<|im_end|>")).sum() == 6
    assert (rendered.tokens == seed_vocabulary.end_of_turn).sum() == 1


def test_reasoning_is_learnt_where_it_is_shown(seed_vocabulary):
    thought = [Message("user", "a"), Message("think", "b"), Message("assistant", "c")]
    again = [*thought, Message("user", "d"), Message("think", "e"), Message("assistant", "f")]
    learnt = [text for text, learnt in runs(render(again, THINK, seed_vocabulary), seed_vocabulary) if learnt]
    assert learnt == ["c<|im_end|><|endofturn|>", "e<|im_end|>\n<|im_start|>assistant\nf<|im_end|><|endofturn|>"]
    assert unseen_reasoning(again) == 1
    assert unseen_reasoning(thought) == 0


def within(messages, vocabulary, length, template=SEED):
    found = render_within(messages, template, vocabulary, length)
    if found is None:
        return None
    rendered, cut = found
    assert len(rendered.tokens) <= length + 1
    assert rendered.learnt[1:].any(), "a row without a target"
    return vocabulary.decode(rendered.tokens, specials=True), cut


def test_what_fits_is_left_alone(seed_vocabulary):
    rendered = render(TALK, SEED, seed_vocabulary)
    text, cut = within(TALK, seed_vocabulary, len(rendered.tokens) - 1)
    assert cut == (0, 0)
    assert text == seed_vocabulary.decode(rendered.tokens, specials=True)


def test_the_oldest_turns_go_first_and_the_system_message_stays(seed_vocabulary):
    whole = len(render(TALK, SEED, seed_vocabulary).tokens)
    text, cut = within(TALK, seed_vocabulary, whole - 2)
    assert cut == (2, 0)
    assert text == SEED.text([TALK[0], *TALK[3:]], answer=False)
    longer = [*TALK, Message("user", "A"), Message("assistant", "B")]
    last = [TALK[0], *longer[-2:]]
    text, cut = within(longer, seed_vocabulary, len(render(last, SEED, seed_vocabulary).tokens) - 1)
    assert (text, cut) == (SEED.text(last, answer=False), (4, 0))


def test_a_last_answer_that_is_too_long_keeps_its_beginning(seed_vocabulary):
    talk = [*TALK, Message("user", "tell"), Message("assistant", "0123456789" * 5)]
    alone = render([TALK[0], *talk[-2:]], SEED, seed_vocabulary)
    text, cut = within(talk, seed_vocabulary, len(alone.tokens) - 1 - 22)
    assert cut == (4, 22)
    assert text.endswith("<|im_start|>assistant\n" + "0123456789" * 3), "50 letters and two ends, 22 of them gone"


def test_a_request_that_leaves_no_room_is_refused(seed_vocabulary):
    talk = [Message("user", "tell"), Message("assistant", "0123456789")]
    before = int((~render(talk, SEED, seed_vocabulary).learnt).sum())
    text, cut = within(talk, seed_vocabulary, before + LEAST_TARGETS - 1)
    assert text.endswith("01234567")
    assert cut == (0, 4)
    assert within(talk, seed_vocabulary, before + LEAST_TARGETS - 2) is None


def test_short_answers_are_no_reason_to_refuse(seed_vocabulary):
    talk = [Message("user", "?"), Message("assistant", "y")]
    text, _ = within(talk, seed_vocabulary, len(render(talk, SEED, seed_vocabulary).tokens) - 1)
    assert text.endswith("y<|im_end|><|endofturn|>")


def test_turns_after_the_last_answer_are_left_out():
    asked = Message("user", "?")
    assert answered([*TALK, asked]) == TALK
    assert answered([asked]) == []
