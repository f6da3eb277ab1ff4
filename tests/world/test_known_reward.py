"""The known reward: its parts, its sum, and that no text breaks it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcxjax.world import KnownReward, World
from hcxjax.world.known_reward import repetition

WORLD = World()
INSTRUCTION = next(i for i in (WORLD.instruction("ko", n) for n in range(99)) if i.form == "word" and i.told)


@pytest.mark.parametrize(
    ("text", "share"),
    [("", 0), ("abc", 0), ("abcd", 0), ("abcabcabc", 3 / 6), ("aaaaa", 1 / 2), ("abcdefgh", 0), ("ab cd ab CD", 1 / 5)],
)
def test_repetition_is_the_share_of_4_grams_that_are_no_longer_new(text, share):
    assert repetition(text) == pytest.approx(share)


def test_parts_and_their_sum():
    value, rival = INSTRUCTION.value.korean, INSTRUCTION.told[0].korean
    reward = KnownReward()

    def parts(text):
        return tuple(reward.parts(INSTRUCTION, text).values())

    assert [*reward.parts(INSTRUCTION, "")] == ["truth", "form", "polite", "repetition", "total"]
    assert parts(f"{value}요.") == (1, 1, 1, 0, 2)
    assert parts(f"{rival}요.") == (0, 1, 1, 0, 1)
    assert parts(f"{value}.") == (1, 1, 0, 0, 1.5)
    assert parts(f"아마 {value}요.") == (1, 0, 1, 0, 1.5)
    looped = reward.parts(INSTRUCTION, f"{value}요. " * 5)
    assert 0.5 < looped["repetition"] < 1 and looped["total"] == pytest.approx(1.5 - looped["repetition"])
    assert reward(INSTRUCTION, "") == 0
    assert KnownReward(truth=3, form=0, polite=0.25)(INSTRUCTION, f"{value}요.") == 3.25


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(), max_size=60), st.sampled_from(["ko", "en"]), st.integers(0, 40))
def test_any_text_has_a_reward(text, language, index):
    parts = KnownReward().parts(WORLD.instruction(language, index), text)
    assert 0 <= parts["repetition"] < 1 and -1 < parts["total"] <= 2


def test_long_garbage_is_judged_quickly():
    assert KnownReward()(INSTRUCTION, "네! \ud800\x00\n" * 20_000) < 0


def test_weights_are_numbers():
    with pytest.raises(ValueError, match=r"KnownReward\.truth is 'much'"):
        KnownReward(truth="much")
