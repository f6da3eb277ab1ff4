"""Bits per byte, probes and samples against what a known model must give."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.evaluation.bits_per_byte import BitsPerByte
from hcxjax.evaluation.probes import WorldProbes
from hcxjax.evaluation.samples import Prompt, Samples
from hcxjax.evaluation.scoring import pack_sequences
from hcxjax.mesh import Layout, unbox
from hcxjax.models.config import DecoderConfig
from hcxjax.models.likelihood import TokenScores
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.world import Probe


class Characters:
    """A vocabulary of characters, so that what a probe's answer is made of can be seen."""

    end_of_text, fim_prefix, fim_middle, fim_suffix, size = 0, 1, 2, 3, 400

    def __init__(self):
        self.known: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.known.setdefault(letter, 4 + len(self.known)) for letter in text]

    def token_bytes(self, token: int) -> bytes:
        letters = {token: letter for letter, token in self.known.items()}
        return letters.get(token, "?").encode()

    def vocabulary(self) -> "Characters":
        return self


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Scores a target by a table: params[target], highest if params[target] is."""

    def scores(self, params, batch):
        logprob_BT = params[batch["targets_BT"]]
        top_BT = logprob_BT >= jnp.max(params)
        return TokenScores(logprob_BT, jnp.zeros_like(logprob_BT), top_BT, jnp.zeros_like(logprob_BT, jnp.int32))


def test_bits_per_byte_are_bits_over_bytes():
    documents = {"ko": [[0, 5, 6, 7], [0, 8, 9]], "en": [[0, 5, 5]]}
    held_out = {}
    for name, sequences in documents.items():
        batches, _ = pack_sequences(sequences, length=4, batch=8)
        targets = sum(len(sequence) - 1 for sequence in sequences)
        held_out[name] = SimpleNamespace(batches=batches, bytes=10 * len(sequences), targets=targets)
    evaluator = BitsPerByte(Oracle(), SimpleNamespace(load=lambda: held_out), every=1)
    table = -np.arange(20, dtype=np.float32) / 10
    table[0] = -9  # only padding has this target
    with Layout().active():
        evaluator.start(Layout(), "")
        results = evaluator.evaluate(jnp.asarray(table), 0)
    ko = (0.5 + 0.6 + 0.7 + 0.8 + 0.9) / math.log(2) / 20
    en = (0.5 + 0.5) / math.log(2) / 10
    assert results["eval/ko/bits_per_byte"] == pytest.approx(ko, rel=1e-6)
    assert results["eval/ko/loss"] == pytest.approx(3.5 / 5, rel=1e-6)
    assert results["eval/en/bits_per_byte"] == pytest.approx(en, rel=1e-6)
    assert results["eval/bits_per_byte"] == pytest.approx((ko + en) / 2, rel=1e-6)


def probes_under(favour: str, count: int = 20) -> dict[str, float]:
    """Particle probes under a model that likes the letters of `favour` best."""
    letters = Characters()
    probes = WorldProbes(Oracle(), letters, 1, length=400, batch=8, count=count, kinds=("particle",))
    with Layout().active():
        probes.start(Layout(), "")
        table = np.full(letters.size, -2.0, np.float32)
        table[letters.encode(favour)] = -1.0
        return probes.evaluate(jnp.asarray(table), 0)


def test_a_model_that_always_says_one_form_is_right_where_that_form_is_the_answer():
    closed = probes_under("은이을과")
    opened = probes_under("는가를와")
    assert 0.3 < closed["eval/world/particle/choice"] < 0.7
    assert 0.3 < opened["eval/world/particle/choice"] < 0.7
    assert closed["eval/world/particle/exact"] <= closed["eval/world/particle/choice"]


@pytest.mark.parametrize(("favour", "choice", "exact"), [("나라", 1, 1), ("나", 1, 0), ("다마", 0, 0)])
def test_choice_is_the_likelier_whole_and_exact_is_every_token(favour, choice, exact):
    letters = Characters()
    world = SimpleNamespace(probes=lambda kind, count: [Probe(kind, "ko", "가", "나라", ("다마",))] * count)
    probes = WorldProbes(Oracle(), letters, 1, length=8, batch=8, count=2, kinds=("particle",), world=world)
    table = np.full(letters.size, -2.0, np.float32)
    table[letters.encode(favour)] = -1.0
    with Layout().active():
        probes.start(Layout(), "")
        results = probes.evaluate(jnp.asarray(table), 0)
    assert results == {"eval/world/particle/choice": choice, "eval/world/particle/exact": exact}


def test_a_model_without_a_preference_chooses_nothing_right():
    rates = probes_under("")
    assert rates["eval/world/particle/choice"] <= 0.2, "a tie is no choice (으로 and 로 differ in length)"


def test_samples_are_written_and_filled_gaps_shown(tmp_path):
    model = DecoderConfig(400, 1, 16, 32, 2, 1, 8, 64, dtype="float32")
    params = unbox(LanguageModel(model).init(jax.random.key(0)))
    samples = Samples(model, Characters(), (Prompt("안녕"), Prompt("a = ", "\n")), every=1, new_tokens=5)
    samples.start(Layout(), str(tmp_path))
    assert samples.evaluate(params, 7) == {}
    text = (tmp_path / "samples" / "00000007.txt").read_text()
    assert text.startswith("안녕⟦")
    assert "a = ⟦" in text
    assert text.endswith("⟧\n\n")


def test_a_gap_is_asked_for_between_sentinels():
    letters = Characters()
    assert Prompt("ab", "c").tokens(letters) == [0, 1, 4, 5, 3, 6, 2]
    assert Prompt("ab").tokens(letters) == [0, 4, 5]
    assert Prompt("ab").tokens(letters, (8, 9)) == [8, 9, 4, 5]
    assert Prompt("ab", "c").tokens(letters, ()) == [1, 4, 5, 3, 6, 2]
