"""The frozen models: what they say does not depend on padding, and those that do not fit are refused by name."""

import dataclasses
import hashlib
import shutil

import jax
import numpy as np
import pytest

from hcxjax.data.rollouts.episodes import Episodes
from hcxjax.data.rollouts.judges import Reference, Reward
from hcxjax.inference.requests import Continuation
from hcxjax.mesh import unbox
from hcxjax.models.scalar import init_scalar
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.reward_card import RewardCard, Scale, fingerprint
from tests.data.rollouts.parts import LAYOUT, MODEL, first_params, write_weights

OBJECTIVE = PPO(MODEL, temperature=0.7)
ROWS = (((3, 4), (5, 6, 7)), ((8,), (0,)), ((9, 3, 9, 3), (5, 5, 5, 5, 5, 5)), ((4,), (11, 0)))


@dataclasses.dataclass(frozen=True)
class Kept:
    """A vocabulary of a file."""

    path: str

    @property
    def fingerprint(self):
        with open(self.path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory):
    """Ours, and another."""
    folder = tmp_path_factory.mktemp("vocabularies")
    for name in ("ours", "theirs"):
        (folder / name).write_text(name)
    return [Kept(str(folder / name)) for name in ("ours", "theirs")]


def with_tokenizer(folder, vocabulary):
    (folder / "tokenizer").mkdir()
    shutil.copy(vocabulary.path, folder / "tokenizer" / "tokenizer.model")


def reward_params(seed=1):
    """With a head of steps that no rounding hides."""
    params = unbox(init_scalar(MODEL, jax.random.key(seed)))
    return params | {"head": params["head"] | {"weight": 100 * params["head"]["weight"]}}


CARD = RewardCard(0.5, 2.0, 1.5, 10, "demonstrations", 0.7, {"known": Scale(-1.0, 4.0, 5)}, "", 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, vocabularies):
    """(policy, reward model with its card)."""
    policy, reward = (tmp_path_factory.mktemp(name) for name in ("policy", "reward"))
    write_weights(policy, first_params(OBJECTIVE)["policy"])
    params = reward_params()
    write_weights(reward, params)
    dataclasses.replace(CARD, weights=fingerprint(params)).write(str(reward))
    for folder in (policy, reward):
        with_tokenizer(folder, vocabularies[0])
    return policy, reward


def filled(rows=ROWS, width=12):
    episodes = Episodes.empty(len(rows), width)
    for row, (prompt, answer) in enumerate(rows):
        episodes.put(row, prompt, Continuation(list(answer), [0.0] * len(answer)))
    return episodes


@pytest.fixture(scope="module")
def reward(folders, vocabularies):
    return Reward(MODEL, str(folders[1]), vocabularies[0], LAYOUT)


def test_a_reference_of_another_vocabulary_is_refused_by_name(folders, vocabularies):
    reference = Reference(OBJECTIVE, LAYOUT)
    with pytest.raises(ValueError, match=rf"the weights in {folders[0]} were trained with another tokenizer"):
        reference.read(str(folders[0]), vocabularies[1])


def test_a_reward_model_of_another_vocabulary_is_refused_by_name(folders, vocabularies):
    with pytest.raises(ValueError, match=rf"{folders[1]} were trained with another tokenizer.*set Tokenizer\.path to"):
        Reward(MODEL, str(folders[1]), vocabularies[1], LAYOUT)


def test_a_reward_model_without_a_card_is_refused(tmp_path, folders, vocabularies):
    shutil.copytree(folders[1], tmp_path / "reward")
    (tmp_path / "reward" / "reward_card.json").unlink()
    with pytest.raises(ValueError, match=r"reward has no reward_card\.json"):
        Reward(MODEL, str(tmp_path / "reward"), vocabularies[0], LAYOUT)


def test_a_card_of_other_weights_is_refused(tmp_path, folders, vocabularies):
    shutil.copytree(folders[1], tmp_path / "reward")
    dataclasses.replace(CARD, weights=fingerprint(reward_params(2))).write(str(tmp_path / "reward"))
    with pytest.raises(ValueError, match=r"reward_card\.json does not belong to the weights"):
        Reward(MODEL, str(tmp_path / "reward"), vocabularies[0], LAYOUT)


def test_weights_of_other_sizes_are_refused(folders, vocabularies):
    wider = dataclasses.replace(MODEL, mlp_dim=24)
    with pytest.raises(ValueError, match="has shape"):
        Reward(wider, str(folders[1]), vocabularies[0], LAYOUT)
    with pytest.raises(ValueError, match="has shape"):
        Reference(PPO(wider), LAYOUT).read(str(folders[0]), vocabularies[0])


def test_a_folder_may_name_an_older_checkpoint(tmp_path, folders, vocabularies):
    shutil.copytree(folders[1], tmp_path / "reward")
    write_weights(tmp_path / "reward", reward_params(3), step=4)
    with pytest.raises(ValueError, match="does not belong"):
        Reward(MODEL, str(tmp_path / "reward"), vocabularies[0], LAYOUT)
    assert Reward(MODEL, f"{tmp_path}/reward@0", vocabularies[0], LAYOUT).fingerprint == fingerprint(reward_params())


def test_padded_scores_are_unpadded_scores(reward):
    """Rows alone and as wide as they are; 12 wide; and 16 wide with anything in the padding."""
    alone = [
        float(reward.scores(filled([row], width=sum(map(len, row))).batch(), np.array([sum(map(len, row)) - 1]))[0])
        for row in ROWS
    ]
    episodes = filled()
    last_B = episodes.ends_B - 1
    assert np.ptp(alone) > 1
    np.testing.assert_allclose(reward.scores(episodes.batch(), last_B), alone, atol=1e-3)
    wide = {name: np.pad(array, ((0, 0), (0, 4))) for name, array in episodes.batch().items()}
    wide["tokens_BT"] = np.where(wide["segment_ids_BT"] > 0, wide["tokens_BT"], 7)
    np.testing.assert_allclose(reward.scores(wide, last_B), alone, atol=1e-3)


def test_the_critic_s_scale_is_that_of_the_prompts_sources_in_their_order(reward):
    mean_B, std_B = reward.scales(["known", "strange", "strange", "known"])
    np.testing.assert_array_equal(mean_B, np.float32([-1, 0.5, 0.5, -1]))
    np.testing.assert_array_equal(std_B, np.float32([4, 2, 2, 4]))


def test_scores_are_put_on_the_scale_of_their_source_once_warned(reward, caplog):
    score_B = np.array([3.0, 3.0, -7.0, 0.5, 100.0, -100.0], np.float32)
    sources = ["known", "new", "known", "new", "known", "new"]
    with caplog.at_level("WARNING"):
        reward_B = reward.rewards(score_B, sources)
        np.testing.assert_allclose(reward_B, [1.0, 1.25, -1.5, 0.0, 1.5, -1.5], atol=1e-6)
        assert reward_B.dtype == np.float32
        reward.rewards(score_B, sources)
    assert caplog.text.count("no scale of its own for prompts of new; that of all is taken") == 1
    assert "known" not in caplog.text.replace("unknown", "")


def test_the_reference_speaks_at_the_policy_s_temperature(folders, vocabularies):
    """And the policy that begins as the reference is the reference: KL divergence 0."""
    reference = Reference(OBJECTIVE, LAYOUT)
    params, batch = reference.read(str(folders[0]), vocabularies[0]), filled().batch()
    told_BT = np.asarray(reference.logprobs(params, batch))
    both = first_params(OBJECTIVE)
    judged_BT, _, _ = jax.jit(OBJECTIVE.judged)(both, {name: np.asarray(array) for name, array in batch.items()})
    mask_BT, _ = filled().answers((0,))
    np.testing.assert_allclose(told_BT[mask_BT], np.asarray(judged_BT)[mask_BT], atol=1e-5)
    cold_BT = np.asarray(Reference(PPO(MODEL, temperature=1.0), LAYOUT).logprobs(params, batch))
    assert np.abs(told_BT - cold_BT)[mask_BT].max() > 1e-3
