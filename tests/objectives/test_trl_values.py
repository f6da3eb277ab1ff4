"""The pure functions against what TRL 1.12.0's PPO made of the same rollouts, stored by trl_values.py.

Two deviations of ours: the variance of whitening is divided by n and TRL's by n − 1; TRL's score lies one place after
the stop token where there is room, and its mean of the value's loss counts that place.
"""

import functools
import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from hcxjax.models.likelihood import scores_under
from hcxjax.objectives.clipping import policy_loss, value_loss
from hcxjax.objectives.returns import gae, kl_terms, penalised, token_rewards, up_to_stop, whitened

STORED = json.loads((Path(__file__).resolve().parents[1] / "golden" / "trl_ppo.json").read_text(encoding="utf-8"))
ROLLOUTS = ("full", "ragged")


@jax.jit
def ours(given):
    """The whole way from logits to losses."""
    targets_BT = given["responses"]
    mask_BT = up_to_stop(targets_BT, targets_BT >= 0, (STORED["stop"],))
    logprobs = [
        scores_under(given[name] / given["temperature"], targets_BT).logprob_BT
        for name in ("logits", "reference_logits", "new_logits")
    ]
    score_B = penalised(given["scores"], (targets_BT == STORED["stop"]).any(1), given["penalty"])
    reward_BT = token_rewards(logprobs[0], logprobs[1], mask_BT, score_B, given["beta"])
    advantage_BT, return_BT = gae(reward_BT, given["values"], mask_BT, given["gamma"], given["lam"])
    white_BT = whitened(advantage_BT, mask_BT)
    bessel = jax.numpy.sqrt(1 - 1 / mask_BT.sum())
    return {
        "mask": mask_BT,
        "penalised_scores": score_B,
        **dict(zip(("logprobs", "ref_logprobs", "new_logprobs"), logprobs, strict=True)),
        "kl": kl_terms(logprobs[0], logprobs[1], mask_BT)[0],
        "rewards": reward_BT,
        "returns": return_BT,
        "advantages": white_BT * bessel,
        "pg_loss_max": policy_loss(logprobs[2], logprobs[0], white_BT * bessel, given["clip"]),
        "vf_loss_max": 2 * value_loss(given["new_values"], given["values"], return_BT, given["value_clip"]),
    }


@functools.cache
def rollout(name):
    def arrays(tree):
        return {k: np.asarray(v, np.float32 if np.asarray(v).dtype == float else None) for k, v in tree.items()}

    given = arrays(STORED[name]["given"])
    return SimpleNamespace(ours=jax.device_get(ours(given)), trl=arrays(STORED[name]["trl"]))


def close(found, expected):
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ROLLOUTS)
def test_masks_scores_and_what_comes_before_are_trls(name):
    case = rollout(name)
    np.testing.assert_array_equal(case.ours["mask"], case.trl["mask"])
    assert case.ours["mask"].all() == (name == "full")
    close(case.ours["penalised_scores"], case.trl["penalised_scores"])
    close(case.ours["kl"], case.trl["kl"])
    for key in ("logprobs", "ref_logprobs", "new_logprobs"):
        close(case.ours[key][case.trl["mask"]], case.trl[key][case.trl["mask"]])


@pytest.mark.parametrize("name", ROLLOUTS)
def test_rewards_are_trls_with_the_score_moved_to_the_stop_token(name):
    case = rollout(name)
    expected_BT = case.trl["rewards"].copy()
    moved = 0
    for row, mask_T in enumerate(case.trl["mask"]):
        after = mask_T.sum()
        if after < len(mask_T):
            expected_BT[row, after - 1] += expected_BT[row, after]
            expected_BT[row, after] = 0
            moved += 1
    close(case.ours["rewards"], expected_BT)
    assert moved == {"full": 0, "ragged": 3}[name]


@pytest.mark.parametrize("name", ROLLOUTS)
def test_returns_advantages_and_losses_are_trls(name):
    case = rollout(name)
    mask_BT = case.trl["mask"]
    for key in ("returns", "advantages", "pg_loss_max", "vf_loss_max"):
        close(case.ours[key][mask_BT], case.trl[key][mask_BT])
    np.testing.assert_array_equal(case.ours["advantages"][~mask_BT], 0)
    close(case.ours["pg_loss_max"][mask_BT].mean(), case.trl["pg_loss"])


def test_the_mean_of_the_values_loss_is_trls_where_answers_fill_their_rows():
    case = rollout("full")
    close(case.ours["vf_loss_max"].mean() / 2, case.trl["vf_loss"])
