"""The source of comparisons: its arrays, its order, its resume, its reference, and what is refused."""

import dataclasses
import json
import logging

import jax
import numpy as np
import pytest

from hcxjax.checkpoint import CheckpointFolder, KeepPolicy
from hcxjax.data.comparisons import Comparisons, HeldOutComparisons
from hcxjax.data.kept_tokenizer import keep
from hcxjax.data.preferences import Preferences
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.mesh import Layout
from hcxjax.objectives.dpo import DPO

LENGTH, TOKENS = 64, 1024


@pytest.fixture(scope="module")
def preferences(tmp_path_factory, model_path):
    """Two sources, of 60 and of 30 prompts, some of which both ask."""
    folder = tmp_path_factory.mktemp("preferences")
    rng = np.random.default_rng(0)
    for name, prompts, count in (("chat", 60, 150), ("code", 30, 40)):
        records = []
        for number in range(count):
            chosen, rejected = (f"{side} " * rng.integers(1, 12) + str(number) for side in "ab")
            records.append({"prompt": f"why {rng.integers(prompts)}?", "chosen": chosen, "rejected": rejected})
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    sources = {name: f"jsonl:{folder}/{name}.jsonl" for name in ("chat", "code")}
    return Preferences(sources, Tokenizer(420, model_path), str(folder / "run"), LENGTH, validation_share=0.2)


@pytest.fixture
def started(preferences):
    """Starts sources and closes them."""
    opened = []

    def start(layout=None, **changes):
        source = Comparisons(**({"preferences": preferences, "batch_tokens": TOKENS, "seed": 3} | changes))
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


def texts_in(batch):
    """(source, answer's start, chosen tokens, rejected tokens, margin) of each comparison."""
    for row, *both in zip(*np.nonzero(batch["preferred_BKK"]), strict=True):
        sides = [tuple(batch["tokens_BKT"][row, text][: batch["end_BK"][row, text] + 1]) for text in both]
        yield int(batch["source_B"][row]), int(batch["start_B"][row]), *sides, batch["margin_BKK"][row, *both]


def stored(stores):
    for number, store in enumerate(stores.values()):
        for (chosen, rejected), margin in zip(map(store.texts, range(len(store))), store.margins, strict=True):
            yield number, chosen.start, tuple(chosen.tokens), tuple(rejected.tokens), margin


def test_an_epoch_holds_every_comparison_and_a_prompt_s_in_one_batch(started, preferences, caplog):
    with caplog.at_level(logging.INFO):
        source = started()
    found, seen = [], {}
    for step in range(int(source.plan.an_epoch)):
        batch = arrays(source.next(None, step))
        rows, texts, length = batch["tokens_BKT"].shape
        assert texts == 2
        assert 2 * rows * length == TOKENS
        kinds = {name: value.dtype.name for name, value in batch.items()}
        assert kinds == dict.fromkeys(kinds, "int32") | {"preferred_BKK": "float32", "margin_BKK": "float32"}
        count_B = batch["preferred_BKK"].sum((1, 2))
        assert count_B.max() == 1
        assert (batch["preferred_BKK"][:, 0, 1] == count_B).all(), "of two texts the preferred one comes first"
        empty = count_B == 0
        assert not any(value[empty].any() for name, value in batch.items() if "tokens" not in name)
        assert (batch["tokens_BKT"][empty] == preferences.vocabulary().pad).all()
        found += texts_in(batch)
        for prompt in set(batch["prompt_B"][~empty].tolist()):
            assert seen.setdefault(prompt, step) == step
    stores = preferences.stores("train")
    assert sorted(found) == sorted(stored(stores))
    prompts = set(np.concatenate([store.prompts for store in stores.values()]).tolist())
    assert len(seen) == len(prompts) < sum(len(set(store.prompts.tolist())) for store in stores.values())
    assert f"{len(found)} comparisons of {len(prompts)} prompts in {step + 1} batches an epoch" in caplog.text
    with caplog.at_level(logging.WARNING):
        source.next(None, step + 1)
    assert f"a second epoch begins at update {step + 2}" in caplog.text


@pytest.fixture(scope="module")
def ranked(tmp_path_factory, model_path):
    """Prompts with 2 to 6 answers that are scored, so that those of 5 and 6 make several rows of 4 texts."""
    folder, rng = tmp_path_factory.mktemp("ranked"), np.random.default_rng(1)
    records = []
    for number in range(40):
        count = 2 + number % 5
        answers = [f"{letter} " * rng.integers(1, 6) + str(number) for letter in "abcdef"[:count]]
        records.append({"prompt": f"why {number}?", "responses": answers, "scores": rng.permutation(count).tolist()})
    (folder / "ranked.jsonl").write_text("\n".join(map(json.dumps, records)), encoding="utf-8")
    sources, tokenizer = {"ranked": f"jsonl:{folder}/ranked.jsonl"}, Tokenizer(420, model_path)
    return Preferences(sources, tokenizer, str(folder / "run"), LENGTH, validation_share=0.2)


@pytest.mark.parametrize("texts", [3, 4])
def test_rows_of_more_texts_hold_every_comparison_once(started, ranked, texts):
    source = started(preferences=ranked, texts=texts, batch_tokens=512 * texts)
    found, seen, used, positions = [], {}, 0, 0
    for step in range(int(source.plan.an_epoch)):
        batch = arrays(source.next(None, step))
        rows, count, length = batch["tokens_BKT"].shape
        assert (count, rows * length) == (texts, 512)
        found += texts_in(batch)
        for row in np.flatnonzero(batch["preferred_BKK"].any((1, 2))):
            assert seen.setdefault(int(batch["prompt_B"][row]), step) == step
        used, positions = used + (batch["end_BK"] + 1)[batch["end_BK"] > 0].sum(), positions + 512 * texts
        missing = batch["end_BK"] == 0
        assert (batch["tokens_BKT"][missing] == ranked.vocabulary().pad).all()
        assert not (batch["preferred_BKK"].any(1) | batch["preferred_BKK"].any(2))[missing].any()
    assert sorted(found) == sorted(stored(ranked.stores("train")))
    assert source.plan.padding == pytest.approx(1 - used / positions)
    tokens = 512 * texts * (texts + 1)
    one, other = (started(preferences=ranked, texts=count, batch_tokens=tokens) for count in (texts, texts + 1))
    with pytest.raises(ValueError, match=r"what differs is .*Comparisons\.texts"):
        other.set_state(one.get_state())
    loaded = HeldOutComparisons(ranked, 512 * texts, texts=texts).load(Layout())["ranked"]
    held = ranked.stores("validation")
    assert sorted(text for batch in loaded for text in texts_in(batch)) == sorted(stored(held))
    few = HeldOutComparisons(ranked, 512 * texts, most=7, texts=texts).load(Layout())["ranked"]
    assert sorted(text for batch in few for text in texts_in(batch)) == sorted(list(stored(held))[:7])


def test_a_batch_depends_on_seed_and_step_alone_on_any_mesh(started):
    forward, jumping, other = started(), started(Layout(data=2, tensor=4)), started(seed=4)
    batches = [arrays(forward.next(None, step)) for step in range(20)]
    for step in (17, 0, 19, 2):
        assert same(arrays(jumping.next(None, step)), batches[step])
    assert not all(same(arrays(other.next(None, step)), batches[step]) for step in range(3))
    assert forward.measures() == {}


def test_a_resume_is_exact(started, preferences):
    source = started()
    for step in range(7):
        source.next(None, step)
    state = source.get_state()
    assert all(isinstance(value, int) for value in state.values())
    resumed = started()
    resumed.set_state(state)
    assert resumed.get_state() == state
    assert same(arrays(resumed.next(None, 7)), arrays(source.next(None, 7)))
    later = Comparisons(preferences, TOKENS, seed=3)
    later.follow(source, 7)
    later.start(Layout(), None)
    assert same(arrays(later.next(None, 0)), arrays(source.next(None, 7)))
    later.close()


def test_a_state_of_other_data_is_refused(started, preferences):
    state = started().get_state()
    for changes, message in (
        ({"seed": 4}, "BATCH_TOKENS, LENGTH, SEED"),
        ({"preferences": dataclasses.replace(preferences, max_comparisons=2)}, r"the comparisons \(Preferences"),
    ):
        with pytest.raises(ValueError, match=f"not this run's: what differs is .*{message}"):
            started(**changes).set_state(state)


def test_held_out_comparisons_come_once_each(preferences):
    reader = HeldOutComparisons(preferences, TOKENS)
    loaded = reader.load(Layout())
    found = [text for batches in loaded.values() for batch in batches for text in texts_in(batch)]
    stores = preferences.stores("validation")
    assert sorted(found) == sorted(stored(stores))
    assert len(set(np.concatenate([batch["prompt_B"] for batch in loaded["chat"]]))) > 5
    few = dataclasses.replace(reader, most=3).load(Layout())
    assert all(len([text for batch in batches for text in texts_in(batch)]) == 3 for batches in few.values())
    learnt = list(reader.learnt(10))
    first = preferences.stores("train")["chat"].texts(0)
    assert len(learnt) == 20
    assert [side.tolist() for side in learnt[0]] == [text.tokens[text.start :].tolist() for text in first]
    none = dataclasses.replace(preferences, validation_share=0.0)
    with pytest.raises(ValueError, match=r"no comparison is held out: Preferences.validation_share is 0\.0"):
        HeldOutComparisons(none, TOKENS).load(Layout())


@pytest.fixture(scope="module")
def policy(tmp_path_factory, tiny, random_params, preferences):
    """A run of a policy with the same vocabulary: its folder, its sizes and its parameters."""
    folder, model = tmp_path_factory.mktemp("policy"), dataclasses.replace(tiny, vocab_size=420, max_length=LENGTH)
    params = random_params(model)
    checkpoints = CheckpointFolder(folder / "checkpoints", KeepPolicy())
    checkpoints.save(3, {"state": {"params": params}}, None)
    checkpoints.close()
    keep(preferences.vocabulary(), str(folder))
    return folder, model, params


def test_the_reference_s_log_probabilities_go_with_every_batch(started, policy, preferences):
    folder, model, params = policy
    objective = DPO(model)
    source = started(reference=str(folder), objective=objective)
    batch = source.next(None, 1)
    plain = started().next(None, 1)
    expected = jax.jit(objective.logprobs)(params, plain)
    np.testing.assert_allclose(batch["reference_BK"], expected, rtol=1e-5)
    assert (np.asarray(expected)[np.asarray(batch["end_BK"]) > 0] < -1).all()
    assert source.get_state()["reference"] != started().get_state()["reference"]
    reader = HeldOutComparisons(preferences, TOKENS, 8, reference=str(folder), objective=objective)
    held = reader.load(Layout())["chat"][0]
    logprob_BK = jax.jit(objective.logprobs)(params, {name: held[name] for name in plain})
    np.testing.assert_allclose(held["reference_BK"], logprob_BK, rtol=1e-5)


def test_models_of_another_vocabulary_are_refused(started, policy, preferences, tmp_path):
    folder, model, _ = policy
    with open(preferences.tokenizer.path, "rb") as file:
        (tmp_path / "other.model").write_bytes(file.read() + b"\x1a\x00")
    other = dataclasses.replace(preferences, tokenizer=Tokenizer(420, str(tmp_path / "other.model")))
    other = dataclasses.replace(other, directory=str(tmp_path))
    with pytest.raises(ValueError, match=f"the weights in {folder} were trained with another tokenizer"):
        started(preferences=other).begin_from(str(folder))
    with pytest.raises(ValueError, match=f"the weights in {folder} were trained with another tokenizer"):
        started(preferences=other, reference=str(folder), objective=DPO(model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_tokens": 127}, r"is 127, which is 0 rows of 2 texts of LENGTH 64; .*of 8 .*set it to 1024 or"),
        ({"batch_tokens": 512}, r"BATCH_TOKENS is 512, which is 4 rows of 2 texts"),
        ({"texts": 4}, r"BATCH_TOKENS is 1024, which is 4 rows of 4 texts of LENGTH 64; .*set it to 2048 or"),
        ({"texts": 1}, r"Comparisons\.texts is 1; it must be a whole number of at least 2"),
        ({"batch_tokens": 0}, "Comparisons.batch_tokens is 0"),
        ({"buckets": (32,)}, r"Comparisons.buckets is \(32,\); they must be positive and rise up to LENGTH, 64"),
        ({"buckets": (64, 32)}, "must be positive and rise"),
        ({"reference": "runs/sft"}, "Comparisons.reference is 'runs/sft', but Comparisons.objective is None"),
    ],
)
def test_impossible_batches_are_named(started, changes, message):
    with pytest.raises(ValueError, match=message):
        started(**changes)


def test_the_constructors_touch_no_file():
    Comparisons(Preferences({}, Tokenizer(), "/nowhere", LENGTH), TOKENS).close()
