"""Writes tests/golden/trl_ppo.json: what TRL 1.12.0's PPO makes of two small rollouts, by its own code.

    pip install torch==2.13.0 trl==1.12.0 requests
    python tests/objectives/trl_values.py

TRL's last release of a PPO with a critic keeps most of it inside `PPOTrainer.train`; the statements wanted are taken
from its source by the names they assign and run as they are.

TRL adds the score one place after the stop token where there is room, and learns a value there. So that it and hcxjax
must agree, the answers of one rollout fill their rows; in the other γ is 1 and the value after the stop is the score
itself, so that nothing is gained or lost after the stop token.
"""

import ast
import inspect
import json
import textwrap
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import trl
from trl.experimental.ppo import ppo_trainer

STOP, PAD, VOCABULARY, LENGTH = 3, 0, 9, 7
INPUTS = ("logits", "reference_logits", "new_logits", "values", "new_values")
RESULTS = ("logprobs", "ref_logprobs", "new_logprobs", "kl", "rewards", "values", "returns", "advantages")
RESULTS += ("pg_loss_max", "vf_loss_max", "pg_loss", "vf_loss")
TRAIN = ast.parse(textwrap.dedent(inspect.getsource(ppo_trainer.PPOTrainer.train)))

ROLLOUTS = {
    "full": {
        "responses": [[4, 5, 6, 7, 8, 4, 3], [1, 2, 4, 5, 6, 7, 8], [8, 8, 8, 8, 1, 1, 3], [5, 4, 5, 4, 5, 4, 5]],
        "scores": [0.7, -1.6, 2.25, 0.4],
        "gamma": 0.9,
        "lam": 0.8,
    },
    "ragged": {
        "responses": [
            [3, 5, 6, 7, 8, 4, 3],
            [1, 2, 3, 3, 6, 7, 8],
            [8, 8, 8, 8, 1, 3, 6],
            [5, 4, 5, 4, 5, 4, 3],
            [5, 4, 5, 4, 5, 4, 5],
        ],
        "scores": [0.7, -1.6, 2.25, 0.4, 1.3],
        "gamma": 1.0,
        "lam": 0.95,
    },
}


def statements(first: str, last: str) -> str:
    """Source of train() from the statement that assigns `first` to the last that assigns `last` in the same block."""

    def targets(node: ast.stmt) -> list[str]:
        return [ast.unparse(target) for target in node.targets] if isinstance(node, ast.Assign) else []

    for node in ast.walk(TRAIN):
        block = node.body if isinstance(node, ast.FunctionDef | ast.For | ast.With) else []
        starts = [at for at, child in enumerate(block) if first in targets(child)]
        stops = [at for at, child in enumerate(block) if last in targets(child)]
        if starts and stops:
            return "\n".join(ast.unparse(child) for child in block[starts[0] : stops[-1] + 1])
    raise LookupError(f"train() has no block that assigns {first} and then {last}")


def drawn(rollout: dict, seed: int) -> dict:
    """The rollout with logits and values, rounded so that the file stays small."""
    rng = np.random.default_rng(seed)
    rows = len(rollout["responses"])
    logits = rng.normal(size=(rows, LENGTH, VOCABULARY))
    values = rng.normal(size=(rows, LENGTH))
    noisy = {
        "logits": logits,
        "reference_logits": logits + rng.normal(scale=0.3, size=logits.shape),
        "new_logits": logits + rng.normal(scale=0.2, size=logits.shape),
        "values": values,
        "new_values": values + rng.normal(scale=0.4, size=values.shape),
    }
    settings = {"temperature": 0.7, "beta": 0.04, "penalty": 0.5, "clip": 0.2, "value_clip": 0.2}
    return rollout | settings | {name: np.round(x, 3).tolist() for name, x in noisy.items()}


def result(case: dict) -> dict:
    """What TRL makes of it."""
    args = SimpleNamespace(
        missing_eos_penalty=case["penalty"],
        kl_estimator="k1",
        kl_coef=case["beta"],
        whiten_rewards=False,
        gamma=case["gamma"],
        lam=case["lam"],
        cliprange=case["clip"],
        cliprange_value=case["value_clip"],
    )
    responses = torch.tensor(case["responses"])
    cooled = {name: torch.tensor(case[name]) for name in INPUTS}
    for name in INPUTS[:3]:
        cooled[name] /= case["temperature"] + 1e-7
    kept = ppo_trainer.truncate_response(STOP, PAD, responses)
    lengths = ppo_trainer.first_true_indices(kept == PAD) - 1
    values = cooled["values"]
    stopped = (kept == STOP).any(1)
    for row, last in enumerate(lengths.tolist()):
        if last + 1 < LENGTH:
            values[row, last + 1] = case["scores"][row] - (0 if stopped[row] else case["penalty"])
    names = vars(ppo_trainer) | {
        "self": SimpleNamespace(processing_class=SimpleNamespace(eos_token_id=STOP), args=args),
        "args": args,
        "responses": responses,
        "postprocessed_responses": kept,
        "logprobs": ppo_trainer.selective_log_softmax(cooled["logits"], responses),
        "ref_logprobs": ppo_trainer.selective_log_softmax(cooled["reference_logits"], responses),
        "scores": torch.tensor(case["scores"]),
        "sequence_lengths": lengths,
        "values": values,
        "empty_cache": lambda: None,
    }
    exec(statements("contain_eos_token", "advantages"), names)
    names |= {
        "context_length": 1,
        "logits": cooled["new_logits"],
        "vpred_temp": torch.cat([cooled["new_values"], torch.zeros(len(responses), 1)], 1)[..., None],
        "micro_batch_inds": torch.arange(len(responses)),
        "mb_responses": responses,
        "mb_logprobs": names["logprobs"],
        "mb_values": names["values"],
        "mb_advantage": names["advantages"],
        "mb_return": names["returns"],
    }
    exec(statements("new_logprobs", "pg_loss"), names)
    results = {"mask": ~names["padding_mask"], "penalised_scores": names["scores"]}
    results |= {name: names[name] for name in RESULTS}
    return {name: x.tolist() for name, x in results.items()}


def main() -> None:
    """Writes the file."""
    if trl.__version__ != "1.12.0":
        raise SystemExit(f"trl is {trl.__version__}; the values are those of 1.12.0")
    cases = {name: drawn(rollout, seed) for seed, (name, rollout) in enumerate(ROLLOUTS.items())}
    stored = {name: {"given": case, "trl": result(case)} for name, case in cases.items()}
    path = Path(__file__).resolve().parents[1] / "golden" / "trl_ppo.json"
    path.write_text(json.dumps({"stop": STOP, **stored}, separators=(",", ":")) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
