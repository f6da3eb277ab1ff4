"""The known reward of answers: what the engine writes is judged, told and kept, prompt by prompt."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.evaluation import answers
from hcxjax.evaluation.known_reward import KnownRewardOfAnswers
from hcxjax.mesh import Layout
from hcxjax.models.config import DecoderConfig
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.world import World

WORLD = World()
INSTRUCTIONS = [WORLD.instruction(language, index, "validation") for language in ("ko", "en") for index in range(4)]
STOP = 2


class Letters:
    """A vocabulary of characters."""

    def __init__(self, *texts):
        self.known = {letter: 3 + number for number, letter in enumerate(sorted(set("".join(texts))))}

    def encode(self, text):
        return [self.known[letter] for letter in text]

    def decode(self, ids):
        letters = {token: letter for letter, token in self.known.items()}
        return "".join(letters.get(token, "") for token in ids)


SAID = ["네, 개예요.", "Sure, a cat."]
LETTERS = Letters(*(i.prompt for i in INSTRUCTIONS), *(i.value.korean + i.value.english for i in INSTRUCTIONS), *SAID)


class Prompts:
    """Eight instructions, each known by its first token."""

    def __init__(self, instructions=INSTRUCTIONS):
        self.instructions = instructions
        self.tokens = [(1, *LETTERS.encode(i.prompt[:3])) if i else (1, 3) for i in instructions]
        self.texts = [i.prompt if i else "?" for i in instructions]
        self.sources = [i.language if i else "file" for i in instructions]
        self.stop_ids, self.vocabulary = (STOP,), LETTERS

    def load(self, split):
        assert split == "validation"
        return self

    def __len__(self):
        return len(self.instructions)

    def batch(self, update, size, seed):
        assert update == 0
        return [7, 0, 3, 4, 1, 2, 5, 6][:size] if seed == 0 else list(range(size))


@pytest.fixture
def scripted(monkeypatch):
    """An engine that says what the parameters are, whatever it is asked."""

    class Engine:
        made = 0

        def __init__(self, model, params, vocabulary, settings):
            type(self).made += 1
            self.params = params

        def swap(self, params):
            self.params = params

        def complete(self, requests):
            self.requests = requests
            return [
                [SimpleNamespace(tokens=[*LETTERS.encode(text), *([STOP] if stops else [])], finish="stop" * stops)]
                for text, stops in self.params
            ]

    monkeypatch.setattr(answers, "Engine", Engine)
    return Engine


def objective(**fields):
    return SimpleNamespace(model=SimpleNamespace(max_length=300), policy=lambda params: params["policy"], **fields)


def test_answers_are_judged_told_and_kept(scripted, tmp_path):
    evaluator = KnownRewardOfAnswers(objective(), Prompts(), every=1)
    evaluator.start(Layout(), str(tmp_path))
    true = [(f"{i.value.korean}요." if i.language == "ko" else f"{i.value.english}.", True) for i in INSTRUCTIONS]
    results = evaluator.evaluate({"policy": true, "value": None}, 3)
    assert results["eval/world/truth"] == 1 == results["eval/world/ko/truth"]
    assert results["eval/world/polite"] == 0.5 and results["eval/world/ko/polite"] == 1
    assert results["eval/world/stop_rate"] == 1 and results["eval/world/repetition"] == 0
    assert results["eval/world/length"] == np.mean([len(text) + 1 for text, _ in true])
    weighed = sum(w * results[f"eval/world/{n}"] for n, w in (("truth", 1), ("form", 0.5), ("polite", 0.5)))
    assert results["eval/world/reward"] == pytest.approx(weighed)

    looped = [(text * 4, False) for text, _ in true]
    worse = evaluator.evaluate({"policy": looped, "value": None}, 40)
    assert worse["eval/world/stop_rate"] == 0 and worse["eval/world/seq_rep_4"] > 0.4
    assert worse["eval/world/repetition"] > 0.4 and worse["eval/world/reward"] < results["eval/world/reward"]
    assert scripted.made == 1, "an engine compiles for minutes: it is made once"

    files = sorted((tmp_path / "known_reward").iterdir())
    assert [file.name for file in files] == ["00000003.jsonl", "00000040.jsonl"]
    lines = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert [line["prompt"] for line in lines] == list(range(8))
    assert [line["asked"] for line in lines] == [i.prompt for i in INSTRUCTIONS]
    assert [line["answer"] for line in lines] == [text for text, _ in true]
    assert np.mean([line["reward"] for line in lines]) == pytest.approx(results["eval/world/reward"])
    assert "\\u" not in files[0].read_text()


def test_fewer_prompts_are_a_fixed_draw_of_all(scripted, tmp_path):
    evaluator = KnownRewardOfAnswers(objective(), Prompts(), every=1, count=3)
    evaluator.start(Layout(), str(tmp_path))
    evaluator.evaluate({"policy": [("a", True)] * 3}, 0)
    lines = (tmp_path / "known_reward" / "00000000.jsonl").read_text().splitlines()
    assert [json.loads(line)["prompt"] for line in lines] == [0, 3, 7]


def test_prompts_without_a_known_reward_are_named(tmp_path):
    evaluator = KnownRewardOfAnswers(objective(), Prompts([*INSTRUCTIONS[:2], None]), every=1, seed=1)
    with pytest.raises(ValueError, match="the prompts of 'file' have no known reward"):
        evaluator.start(Layout(), str(tmp_path))


def test_prompts_too_long_for_the_model_are_named(tmp_path):
    small = SimpleNamespace(model=SimpleNamespace(max_length=40), policy=None)
    evaluator = KnownRewardOfAnswers(small, Prompts(), every=1)
    with pytest.raises(ValueError, match=r"longest prompt has 4 tokens and an answer up to 40 .*context is 40"):
        evaluator.start(Layout(), str(tmp_path))


@pytest.mark.parametrize("field", ["every", "count", "new_tokens"])
def test_counts_are_whole(field):
    with pytest.raises(ValueError, match=rf"KnownRewardOfAnswers\.{field} is 0"):
        KnownRewardOfAnswers(**{"objective": objective(), "prompts": Prompts(), "every": 1} | {field: 0})


@dataclasses.dataclass(frozen=True)
class Two:
    """An objective with a value beside the policy."""

    model: DecoderConfig

    def policy(self, params):
        return params["policy"]


def test_real_policies_answer_alone_and_beside_a_value(tiny, random_params, tmp_path):
    model = dataclasses.replace(tiny, vocab_size=3 + len(LETTERS.known), max_length=64)
    policy, other = random_params(model), random_params(model, seed=1)
    results = []
    with Layout().active():
        for evaluated, wrap in ((LanguageModel(model), lambda p: p), (Two(model), lambda p: {"policy": p, "value": 0})):
            evaluator = KnownRewardOfAnswers(evaluated, Prompts(), every=1, count=4, new_tokens=6, temperature=0.0)
            evaluator.start(Layout(), str(tmp_path))
            given = jax.tree.map(jnp.copy, policy)
            first = evaluator.evaluate(wrap(given), 0)
            jax.tree.map(lambda leaf: leaf.delete(), given)  # as an update that was given them for good leaves them
            changed = evaluator.evaluate(wrap(other), 1)
            results.append((first, changed, evaluator.evaluate(wrap(policy), 2)))
    (first, changed, again), with_value = results
    assert first == again and (first, changed, again) == with_value
    told = [json.loads(line)["answer"] for line in (tmp_path / "known_reward" / "00000000.jsonl").open()]
    after = [json.loads(line)["answer"] for line in (tmp_path / "known_reward" / "00000001.jsonl").open()]
    assert told != after and first["eval/world/length"] <= 6
