"""From files of dialogues to batches: what is kept and counted, the arrays, their order, and what is refused."""

import dataclasses
import json
import logging
import shutil

import numpy as np
import pytest

from hcxjax.data.conversations import Conversations, HeldOutConversations
from hcxjax.data.dialogues import Dialogues
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.mesh import Layout
from hcxjax.text.rendering import render
from hcxjax.text.templates import HCXJAX, Message
from hcxjax.world import World
from tools.random_checkpoint import byte_tokenizer

LENGTH, TOKENS = 256, 2048


@pytest.fixture(scope="module")
def dialogues(tmp_path_factory, model_path):
    """Two sources: the Korean world as `messages`, the English one as `prompt` and `completion`."""
    folder = tmp_path_factory.mktemp("dialogues")
    korean = [World().dialogue("ko", index) for index in range(120)]
    english = [World().dialogue("en", index) for index in range(80)]
    messages = [{"messages": [turn._asdict() for turn in alternating(turns)]} for turns in korean]
    pairs = [{"prompt": turns[0], "completion": turns[1]} for turns in english]
    write(folder / "ko.jsonl", messages)
    write(folder / "en.jsonl", pairs)
    sources = {"ko": f"jsonl:{folder}/ko.jsonl", "en": f"jsonl:{folder}/en.jsonl"}
    return Dialogues(sources, Tokenizer(420, model_path), str(folder / "run"), LENGTH, validation_share=0.2)


def alternating(turns):
    return [Message(("user", "assistant")[number % 2], text) for number, text in enumerate(turns)]


def write(path, records):
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")


@pytest.fixture
def started(dialogues):
    """Starts sources and closes them."""
    opened = []

    def start(layout=None, **changes):
        source = Conversations(**({"dialogues": dialogues, "batch_tokens": TOKENS, "seed": 3} | changes))
        source.start(layout or Layout(), None)
        opened.append(source)
        return source

    yield start
    for source in opened:
        source.close()


def arrays(batch):
    return {name: np.asarray(value) for name, value in batch.items()}


def same(first, second):
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("packing", [False, True])
def test_a_batch_has_what_the_model_needs(started, packing):
    source = started(packing=packing)
    for step in range(6):
        batch = source.next(None, step)
        rows, length = batch["tokens_BT"].shape
        assert rows * length == TOKENS
        assert length == LENGTH or not packing
        kinds = {name: value.dtype.name for name, value in batch.items() if value.shape == (rows, length)}
        integers = ("tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT")
        assert kinds == dict.fromkeys(integers, "int32") | {"weights_BT": "float32"}
        assert batch["source_B"].shape == (rows,)


def conversations_in(batch, pad=0):
    """Each segment as (source, tokens with the last target, learnt)."""
    for row in range(len(batch["tokens_BT"])):
        segments = batch["segment_ids_BT"][row]
        for segment in range(1, segments.max() + 1):
            (here,) = np.nonzero(segments == segment)
            assert (np.diff(here) == 1).all()
            np.testing.assert_array_equal(batch["positions_BT"][row, here], np.arange(len(here)))
            tokens, targets = batch["tokens_BT"][row, here], batch["targets_BT"][row, here]
            np.testing.assert_array_equal(tokens[1:], targets[:-1])
            whole = np.append(tokens, targets[-1])
            yield int(batch["source_B"][row]), tuple(whole), tuple(np.append(0, batch["weights_BT"][row, here]))
        assert not batch["weights_BT"][row, segments == 0].any()


@pytest.mark.parametrize("packing", [False, True])
def test_an_epoch_holds_every_conversation_as_it_is_rendered(started, dialogues, vocabulary, packing):
    source = started(packing=packing)
    found = []
    for step in range(int(np.ceil(source.plan.an_epoch))):
        found += conversations_in(arrays(source.next(None, step)))
    rendered = [
        (number, tuple(tokens), tuple(learnt))
        for number, store in enumerate(dialogues.stores("train").values())
        for tokens, learnt in map(store.conversation, range(len(store)))
    ]
    if packing:
        assert set(rendered) <= set(found), "the last batch holds some of the next epoch"
    else:
        assert sorted(rendered) == sorted(found)
    kept = {store_tokens for _, store_tokens, _ in rendered}
    wholes = [render(alternating(World().dialogue("en", index)[:2]), HCXJAX, vocabulary) for index in range(80)]
    fitting = [tuple(whole.tokens) for whole in wholes if len(whole.tokens) <= LENGTH + 1]
    assert len(fitting) > 20
    assert 0.6 < np.mean([tokens in kept for tokens in fitting]) < 1, "all but those that are held out"


def test_a_batch_depends_on_seed_and_step_alone(started):
    forward, jumping = started(), started()
    batches = [arrays(forward.next(None, step)) for step in range(30)]
    for step in (17, 0, 29, 2):
        assert same(arrays(jumping.next(None, step)), batches[step])
    assert not all(same(arrays(started(seed=4).next(None, step)), batches[step]) for step in range(3))


def test_a_resume_in_the_middle_of_an_epoch_is_exact(started):
    source = started()
    epoch = round(source.plan.an_epoch)
    for stop in (3, epoch - 1, epoch + 2):
        for step in range(stop):
            source.next(None, step)
        state = source.get_state()
        assert all(isinstance(value, int) for value in state.values())
        resumed = started()
        resumed.set_state(state)
        assert resumed.get_state() == state
        for step in range(stop, stop + 3):
            assert same(arrays(resumed.next(None, step)), arrays(source.next(None, step)))


@pytest.mark.parametrize("packing", [False, True])
def test_the_order_is_the_same_on_any_mesh(started, packing):
    one = started(Layout(data=1, tensor=8), packing=packing)
    other = started(Layout(data=2, fsdp=4), packing=packing)
    assert one.get_state() == other.get_state()
    for step in range(12):
        assert same(arrays(one.next(None, step)), arrays(other.next(None, step)))


def test_each_process_builds_its_rows_alone(started):
    """Any part of a batch's rows is what the whole has there."""
    source = started()
    rows = source.plan.batch(4)
    whole = source._builder.build(rows, 0, len(rows.conversations))
    part = source._builder.build(rows, 3, 5)
    assert same(part, {name: value[3:5] for name, value in whole.items()})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "BATCH_TOKENS, LENGTH, SEED, PACKING"),
        ({"batch_tokens": 4096}, "BATCH_TOKENS"),
        ({"packing": True}, "PACKING"),
        ({"buckets": (96, 256)}, "buckets"),
    ],
)
def test_a_state_of_other_batches_is_refused(started, changes, message):
    state = started().get_state()
    with pytest.raises(ValueError, match=f"not this run's: what differs is .*{message}"):
        started(**changes).set_state(state)


def test_a_state_of_other_conversations_is_refused_and_a_copy_of_the_same_taken(started, dialogues, tmp_path):
    state = started().get_state()
    moved = {name: tmp_path / f"{name}.jsonl" for name in dialogues.sources}
    for name, path in moved.items():
        shutil.copyfile(dialogues.sources[name].removeprefix("jsonl:"), path)
    sources = {name: f"jsonl:{path}" for name, path in moved.items()}
    started(dialogues=dataclasses.replace(dialogues, sources=sources, directory=str(tmp_path))).set_state(state)
    lines = moved["en"].read_text(encoding="utf-8").splitlines()
    moved["en"].write_text("\n".join([*lines, json.dumps({"prompt": "a b c", "completion": "d"})]), encoding="utf-8")
    changed = started(dialogues=dataclasses.replace(dialogues, sources=sources, directory=str(tmp_path)))
    with pytest.raises(ValueError, match=r"what differs is the conversations \(Dialogues"):
        changed.set_state(state)


def test_equal_requests_are_held_out_together(dialogues, vocabulary, tmp_path):
    records = [{"prompt": f"question {n % 40}", "completion": f"answer {n}"} for n in range(200)]
    write(tmp_path / "chat.jsonl", records)
    ours = dataclasses.replace(dialogues, sources={"chat": f"jsonl:{tmp_path}/chat.jsonl"}, directory=str(tmp_path))
    train, held = (ours.stores(split)["chat"] for split in ("train", "validation"))
    assert len(train) + len(held) == 200
    assert 10 <= len(held) <= 80
    texts = [{vocabulary.decode(store.conversation(n).tokens) for n in range(len(store))} for store in (train, held)]
    requests = [{text.split("\n")[0] for text in side} for side in texts]
    assert len(requests[0] | requests[1]) == 40
    assert not requests[0] & requests[1]


def test_what_is_left_out_is_counted_by_reason_with_an_example(dialogues, tmp_path, caplog):
    good = {"messages": [turn._asdict() for turn in alternating(["question", "answer"])]}
    long = {"prompt": "x " * 400, "completion": "an answer"}
    cut = {"messages": [turn._asdict() for turn in alternating(["x " * 200, "one", "two", "y " * 600])]}
    trailing = {"messages": [*good["messages"], {"role": "user", "content": "and?"}]}
    system_last = {"messages": [*good["messages"], {"role": "system", "content": "s"}, *good["messages"]]}
    records = [good, "{", long, {"text": "t"}, cut, trailing, system_last, {"prompt": "\ud800", "completion": "a"}]
    write(tmp_path / "mixed.jsonl", records)
    ours = dataclasses.replace(
        dialogues, sources={"mixed": f"jsonl:{tmp_path}/mixed.jsonl"}, directory=str(tmp_path), validation_share=0.0
    )
    with caplog.at_level(logging.WARNING):
        store = ours.stores("train")["mixed"]
    assert len(store) == 3
    left_out = {reason: count for reason, (count, _) in store.manifest["left_out"].items()}
    assert left_out == {
        "malformed JSON": 1,
        "its last request leaves no room for 8 tokens of an answer": 1,
        "no known form (messages, conversations, instruction and output, prompt and completion)": 1,
        "turns that the template has not": 1,
        "lone surrogate": 1,
    }
    assert store.manifest["left_out"]["malformed JSON"][1].endswith("mixed.jsonl:2")
    assert (
        "role 'system' cannot stand after 'assistant'"
        in store.manifest["left_out"]["turns that the template has not"][1]
    )
    shortened = {reason: count for reason, (count, _) in store.manifest["shortened"].items()}
    assert shortened["oldest turns"] == 2
    assert shortened["turns after the last answer"] == 1
    assert shortened["conversations without tokens of a last answer"] == 1
    assert "mixed: left out malformed JSON 1 (first: " in caplog.text
    assert "mixed: shortened " in caplog.text
    counted = sum(left_out.values()) + len(store)
    assert counted == len(records)
    assert int(max(store.lengths)) == LENGTH + 1
    for number in range(len(store)):
        assert store.conversation(number).learnt[1:].any()


def test_a_template_needs_its_stops_too(dialogues, tmp_path):
    """They are in no dialogue's history, so nothing else would tell before somebody talks with the model."""
    pytest.importorskip("tokenizers")
    tokenizer, _ = byte_tokenizer(264)
    for entry in tokenizer["added_tokens"]:
        entry["special"] = entry["content"] != "<|stop|>"
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(tokenizer))
    ours = dataclasses.replace(dialogues, tokenizer=Tokenizer(264, str(path)), template="seed", directory=str(tmp_path))
    with pytest.raises(ValueError, match=r"has no special <\|stop\|>"):
        ours.stores("train")


def test_a_damaged_store_is_named(dialogues, tmp_path):
    ours = dataclasses.replace(dialogues, directory=str(tmp_path))
    ours.stores("train")
    victim = next((tmp_path / "conversations").glob("ko-*/tokens"))
    victim.write_bytes(victim.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(ValueError, match=r"tokens is missing or corrupted; delete .*ko-"):
        ours.stores("train")


def test_held_out_conversations_come_once_each(dialogues):
    loaded = HeldOutConversations(dialogues, TOKENS).load(Layout())
    for number, (name, store) in enumerate(dialogues.stores("validation").items()):
        found = [item for batch in loaded[name] for item in conversations_in(batch)]
        expected = [(number, *map(tuple, store.conversation(place))) for place in range(len(store))]
        assert sorted(found) == sorted(expected)
    few = HeldOutConversations(dialogues, TOKENS, most=3).load(Layout())
    assert all(len([item for batch in batches for item in conversations_in(batch)]) == 3 for batches in few.values())
    none = dataclasses.replace(dialogues, validation_share=0.0)
    with pytest.raises(ValueError, match=r"no conversation is held out: Dialogues.validation_share is 0\.0"):
        HeldOutConversations(none, TOKENS).load(Layout())


def test_a_later_phase_goes_on_where_the_first_ended(started, dialogues):
    first = started()
    later = Conversations(dialogues, TOKENS, seed=3)
    later.follow(first, 5)
    later.start(Layout(), None)
    assert same(arrays(later.next(None, 0)), arrays(first.next(None, 5)))
    later.close()
    other = Conversations(dialogues, 2 * TOKENS, seed=3)
    other.follow(first, 5)
    assert other._batches_before == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"batch_tokens": 255},
            r"BATCH_TOKENS is 255, which is 0 rows of LENGTH 256; .* multiple of 8 .*set it to 2048",
        ),
        ({"batch_tokens": 1024}, r"BATCH_TOKENS is 1024, which is 4 rows"),
        ({"batch_tokens": 0}, "Conversations.batch_tokens is 0"),
        ({"buckets": (128,)}, r"Conversations.buckets is \(128,\); they must rise up to LENGTH, 256"),
        ({"buckets": (0, 256)}, "must be positive"),
    ],
)
def test_impossible_batches_are_named(started, changes, message):
    with pytest.raises(ValueError, match=message):
        started(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {}}, "Dialogues.sources is empty"),
        ({"sources": {"a": "text:folder"}}, "a is 'text:folder'; it must be jsonl:PATH"),
        ({"sources": {"a": "world:ko"}}, "set Dialogues.max_dialogues"),
        ({"sources": {"a": "world:code"}, "max_dialogues": 3}, "the world speaks ko and en"),
        ({"sources": {"a": "instructions:ko"}}, "set Dialogues.max_dialogues"),
        ({"sources": {"a": "jsonl:/nowhere/*.jsonl"}}, "no .jsonl or"),
        ({"template": "seed"}, r"has no special <\|im_start\|>"),
        ({"template": "chatml"}, "Dialogues.template is 'chatml'; there are hcxjax, seed, think, llama3"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
        ({"tokenizer": Tokenizer(420)}, "Tokenizer.path is None; name the tokenizer of the weights"),
        ({"validation_share": 0.999999}, "has no conversation to train on"),
    ],
)
def test_impossible_dialogues_are_named(started, dialogues, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        started(dialogues=dataclasses.replace(dialogues, **{"directory": str(tmp_path)} | changes))


def test_demonstrations_of_the_world_are_dialogues(dialogues, tmp_path):
    sources = {"ko": "instructions:ko", "en": "instructions:en"}
    shown = dataclasses.replace(dialogues, sources=sources, directory=str(tmp_path), max_dialogues=30)
    vocabulary = shown.vocabulary()
    known = [World().demonstration("ko", index) for index in range(30)]
    rendered = [render([Message("user", ask), Message("assistant", say)], HCXJAX, vocabulary) for ask, say in known]
    stores = [shown.stores(split)["ko"] for split in ("train", "validation")]
    kept = [store.conversation(number).tokens.tolist() for store in stores for number in range(len(store))]
    assert sorted(kept) == sorted(one.tokens.tolist() for one in rendered)


def test_the_constructors_touch_no_file():
    Conversations(Dialogues({}, Tokenizer(), "/nowhere", LENGTH), TOKENS).close()
