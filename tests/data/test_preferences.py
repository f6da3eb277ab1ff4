"""From files of comparisons to a store: what is kept, cut, counted and held out."""

import dataclasses
import json
import logging

import numpy as np
import pytest

from hcxjax.data.pair_rows import shared
from hcxjax.data.preference_forms import Comparison, Preference
from hcxjax.data.preferences import Preferences, fitted
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.templates import HCXJAX, Message
from hcxjax.world import World

LENGTH = 64


@pytest.fixture
def preferences(tmp_path, model_path):
    """(records, changes) → one source of them."""

    def of(records, **changes):
        lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
        (tmp_path / "pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
        given = {"validation_share": 0.0, "length": LENGTH} | changes
        sources = given.pop("sources", {"pairs": f"jsonl:{tmp_path}/pairs.jsonl"})
        return Preferences(sources, Tokenizer(420, model_path), str(tmp_path / "run"), **given)

    return of


def rendered(vocabulary, prompt, answer):
    return HCXJAX.tokens([*prompt, Message("assistant", answer)], vocabulary, answer=False)


def test_both_texts_are_the_conversation_that_ends_with_the_answer(preferences, vocabulary):
    prompt = [
        Message("system", "be brief"),
        Message("user", "why?"),
        Message("assistant", "so"),
        Message("user", "and?"),
    ]
    record = {
        "prompt": [message._asdict() for message in prompt],
        "chosen": ["a b", "c"],
        "rejected": ["d"],
        "margin": 0.5,
    }
    store = preferences([record]).stores("train")["pairs"]
    assert len(store) == 2
    for number, chosen in enumerate(["a b", "c"]):
        for text, answer in zip(store.texts(number), (chosen, "d"), strict=True):
            assert text.tokens.tolist() == rendered(vocabulary, prompt, answer)
            assert text.start == len(HCXJAX.tokens(prompt, vocabulary))
            assert vocabulary.decode(text.tokens[text.start : -1]) == answer
            assert text.tokens[-1] == vocabulary.special("<|endofturn|>")
        assert store.lengths[store.pairs[number]].tolist() == [len(text.tokens) for text in store.texts(number)]
    assert store.margins.tolist() == [0.5, 0.5]
    assert store.prompts[0] == store.prompts[1]
    assert store.manifest["texts"] == 3, "the rejected answer is stored once"


def test_both_texts_lose_the_same_turns_and_an_answer_is_never_cut(vocabulary):
    old = [Message("user", "x " * 12), Message("assistant", "y")]
    prompt = [Message("system", "s"), *old, Message("user", "z"), Message("assistant", "w"), Message("user", "and?")]
    preference = Preference(prompt, ["a", "b " * 14, "c " * 60], [Comparison(0, 1, 0.0), Comparison(0, 2, 0.0)])
    texts, cut = fitted(preference, HCXJAX, vocabulary, LENGTH)
    kept = [prompt[0], *prompt[3:]]
    assert cut == 2
    assert [text and list(text.tokens) for text in texts] == [
        rendered(vocabulary, kept, "a"),
        rendered(vocabulary, kept, "b " * 14),
        None,
    ]
    assert max(len(text.tokens) for text in texts if text) <= LENGTH
    assert len(rendered(vocabulary, prompt, "b " * 14)) > LENGTH >= len(rendered(vocabulary, prompt, "a"))
    exact = len(rendered(vocabulary, prompt[-1:], "a"))
    assert fitted(Preference(prompt[-1:], ["a"], []), HCXJAX, vocabulary, exact)[0][0] is not None
    assert fitted(Preference(prompt[-1:], ["a"], []), HCXJAX, vocabulary, exact - 1)[0][0] is None


def test_what_is_left_out_is_counted_by_reason_with_an_example(preferences, caplog):
    user, tool = {"role": "user", "content": "why?"}, {"role": "tool", "content": "42"}
    long = [{"role": "user", "content": "x " * 30}, {"role": "assistant", "content": "y"}, user]
    records = [
        {"prompt": "why?", "chosen": "a", "rejected": "b"},
        "{",
        {"prompt": "why?", "chosen": "a", "rejected": " a\n"},
        {"prompt": [tool, user], "chosen": "a", "rejected": "b"},
        {"prompt": [{"role": "assistant", "content": "hi"}, user], "chosen": "a", "rejected": "b"},
        {"prompt": "", "chosen": "a", "rejected": "b"},
        {"prompt": "why?", "chosen": "a " * 60, "rejected": "b"},
        {"prompt": "\ud800", "chosen": "a", "rejected": "b"},
        {"prompt": "why?", "chosen": ["a", "b"], "rejected": ["b", "c"]},
        {"prompt": long, "chosen": "a", "rejected": "b " * 4},
    ]
    with caplog.at_level(logging.WARNING):
        store = preferences(records).stores("train")["pairs"]
    left_out = {reason: count for reason, (count, _) in store.manifest["left_out"].items()}
    assert left_out == {
        "malformed JSON": 1,
        "its two answers are equal": 2,
        "turns that the template has not": 1,
        "it begins with the assistant": 1,
        "an empty turn": 1,
        f"its last request and an answer have more than {LENGTH} tokens": 1,
        "lone surrogate": 1,
    }
    assert len(store) == 5
    assert "role 'tool'" in store.manifest["left_out"]["turns that the template has not"][1]
    assert store.manifest["left_out"]["its two answers are equal"][1].endswith("pairs.jsonl:3")
    assert store.manifest["shortened"]["oldest turns"][0] == 2
    assert store.manifest["shortened"]["comparisons without oldest turns"][0] == 1
    assert "pairs: left out its two answers are equal 2 (first: " in caplog.text


def test_all_comparisons_of_a_prompt_are_on_one_side(preferences):
    records = [{"prompt": f"why {n % 40}?", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(160)]
    both = preferences(records, validation_share=0.25)
    train, held = (both.stores(split)["pairs"] for split in ("train", "validation"))
    assert len(train) + len(held) == 160
    assert 20 <= len(held) <= 80
    assert not set(train.prompts.tolist()) & set(held.prompts.tolist())
    assert len(set(train.prompts.tolist()) | set(held.prompts.tolist())) == 40


def test_a_prompt_may_be_limited(preferences):
    records = [{"prompt": f"why {n % 3}?", "chosen": f"a{n}", "rejected": f"b{n}"} for n in range(20)]
    store = preferences(records, max_comparisons=4).stores("train")["pairs"]
    assert np.unique(store.prompts, return_counts=True)[1].tolist() == [4, 4, 4]
    assert store.manifest["left_out"] == {
        "more than 4 comparisons of its prompt": [
            8,
            store.manifest["left_out"]["more than 4 comparisons of its prompt"][1],
        ]
    }


def test_the_world_compares_and_holds_out_its_own_split(preferences, vocabulary):
    sources = {"en": "instructions:en", "ko": "instructions:ko"}
    world = preferences([], sources=sources, max_records=20, answers=4, validation_share=0.1, length=256)
    counts = {}
    for language in sources:
        for split, count in (("train", 20), ("validation", 2)):
            store = world.stores(split)[language]
            known, equal = [], 0
            for index in range(count):
                prompt, answers, compared = World().comparison(language, index, split, 4)
                assert len(compared) == 6
                for chosen, rejected, margin in compared:
                    if answers[chosen] == answers[rejected]:
                        equal += 1
                    else:
                        known.append((prompt, (answers[chosen], answers[rejected]), margin))
            assert len(store) == len(known)
            for number, (prompt, sides, margin) in enumerate(known):
                texts = [rendered(vocabulary, [Message("user", prompt)], side) for side in sides]
                assert [text.tokens.tolist() for text in store.texts(number)] == texts
                assert store.margins[number] == np.float32(margin)
            rows = shared(store.pairs, 4)
            assert len(rows) == count, "a prompt is a row"
            counts[language] = counts.get(language, 0) + equal
        assert store.manifest["left_out"].get("its two answers are equal", [0])[0] == counts[language]
    assert sum(counts.values()) > 0


def test_a_damaged_store_is_named(preferences, tmp_path):
    ours = preferences([{"prompt": "why?", "chosen": "a", "rejected": "b"}])
    ours.stores("train")
    victim = next((tmp_path / "run" / "preferences").glob("pairs-*/margins"))
    victim.write_bytes(b"\0\0\0\1")
    with pytest.raises(ValueError, match=r"margins is missing or corrupted; delete .*pairs-"):
        ours.stores("train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {}}, "Preferences.sources is empty"),
        ({"sources": {"a": "world:ko"}}, "must be jsonl:PATH, parquet:PATH or instructions:LANGUAGE"),
        ({"sources": {"a": "instructions:ko"}}, "set Preferences.max_records"),
        ({"template": "seed"}, r"has no special <\|im_start\|>"),
        ({"max_comparisons": 0}, "Preferences.max_comparisons is 0"),
        ({"answers": 1}, "Preferences.answers is 1; it must be a whole number of at least 2"),
        ({"validation_share": 0.999999}, "'pairs' .* has no comparison to train on: 1 are held out"),
    ],
)
def test_impossible_preferences_are_named(preferences, changes, message):
    with pytest.raises(ValueError, match=message):
        preferences([{"prompt": "why?", "chosen": "a", "rejected": "b"}], **changes).stores("train")


def test_fields_may_be_changed_without_reading_anything(model_path):
    nowhere = Preferences({}, Tokenizer(420, model_path), "/nowhere", LENGTH)
    assert dataclasses.replace(nowhere, length=32).length == 32
