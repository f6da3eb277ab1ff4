"""PPO killed where it hurts: what goes on afterwards is the run that was never killed, to the last bit."""

import json
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

from hcxjax.checkpoint import stored_leaves
from hcxjax.data.kept_tokenizer import keep
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.mesh import unbox
from hcxjax.models.config import DecoderConfig
from hcxjax.models.scalar import init_scalar
from hcxjax.objectives.language_model import LanguageModel
from hcxjax.objectives.reward_card import RewardCard, Scale, fingerprint
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import LANGUAGES, World
from tests.data.rollouts.parts import write_weights
from tests.killed import POINTS
from tests.runs import ROOT, checkpoints

TINY = ROOT / "tests" / "tiny_ppo.gin"
SIZES = DecoderConfig(
    vocab_size=420,
    num_layers=1,
    embed_dim=16,
    mlp_dim=32,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    max_length=64,
    dtype="float32",
)
STEPS = 12

COUNTS = {
    "rollout begins": 2,
    "tokens are written": 9,
    "rollout is written": 2,
    "reference and reward judge": 3,
    "policy and critic judge": 2,
    "rollout is written down": 3,
    "update begins": 6,
    "update was sent": 7,
    "save is not sealed": 2,
    "save is sealed and has no name": 3,
}
"""Which of its calls is the last: behind the first rollout and, but for two, behind the first save."""

UNTIMED = ("train/", "objective/", "policy/", "value/", "rollout/length", "rollout/s", "sampler")


@pytest.fixture(scope="module")
def bindings(tmp_path_factory):
    """A tuned model, a reward model with its card, a tokenizer and prompts, all that a run needs beside its file."""
    folder = tmp_path_factory.mktemp("origins")
    tokenizer, policy, reward = (folder / name for name in ("tokenizer", "policy", "reward"))
    tokenizer.mkdir()
    texts = [text for language in LANGUAGES for text in World().documents(language, count=50)]
    Tokenizer(size=SIZES.vocab_size, reserved=4).train(str(tokenizer), texts)
    vocabulary = Vocabulary(str(tokenizer / "tokenizer.model"))
    scalar = unbox(init_scalar(SIZES, jax.random.key(1)))
    write_weights(policy, unbox(LanguageModel(SIZES).init(jax.random.key(0))))
    write_weights(reward, scalar)
    scales = {"asked": Scale(0.1, 0.9, 10)}
    RewardCard(0.0, 1.0, 3.0, 10, "demonstrations", 0.5, scales, fingerprint(scalar), 0).write(str(reward))
    for origin in (policy, reward):
        keep(vocabulary, str(origin))
    requests = [[{"role": "user", "content": f"{'abcde'[number % 5]} {number}?"}] for number in range(24)]
    asked = folder / "asked.jsonl"
    asked.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in requests), encoding="utf-8")
    return [
        f"POLICY={policy}",
        f"REWARD={reward}",
        f"Tokenizer.path={vocabulary.path}",
        f"SOURCES={{'asked': 'jsonl:{asked}'}}",
        f"STEPS={STEPS}",
    ]


@pytest.fixture
def killed_and_resumed(bindings, compiled, tmp_path):
    """[(point, lag)] → {lag: the run that was never killed}, {(point, lag): the one that was}: their folders."""
    environment = compiled | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

    def command(*arguments):
        return [sys.executable, "-m", "tests.killed", *arguments]

    def of(run, lag):
        return [f"--gin_file={TINY}", *(f"--gin.{binding}" for binding in (*bindings, f"RUN_DIR={run}", f"LAG={lag}"))]

    def make(kills):
        whole = {lag: tmp_path / f"whole-{lag}" for _, lag in kills}
        runs = {kill: tmp_path / f"run-{number}" for number, kill in enumerate(kills)}
        for at in range(0, len(kills), 2):
            pair = [
                subprocess.Popen(
                    command(point, str(COUNTS[point]), *of(runs[point, lag], lag)),
                    env=environment,
                    cwd=ROOT,
                    stderr=subprocess.PIPE,
                    text=True,
                )
                for point, lag in kills[at : at + 2]
            ]
            for process in pair:
                _, messages = process.communicate(timeout=500)
                assert process.returncode == -signal.SIGKILL, messages
        for run in runs.values():
            assert STEPS not in checkpoints(run)
        ours = [of(run, lag) for (_, lag), run in runs.items()]
        rest = command(json.dumps([*ours, *(of(run, lag) for lag, run in whole.items())]))
        done = subprocess.run(rest, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500)
        assert done.returncode == 0, done.stderr
        return whole, runs

    return make


def learnt(run):
    """What is told of each update, but for times and speeds."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines]
    assert steps == list(range(1, STEPS + 1))
    return [{name: value for name, value in line.items() if name.startswith(UNTIMED)} for line in lines]


def state(run):
    """Every leaf of the last checkpoint: parameters, moments, what is being dealt, what waits, β."""
    step, leaves = stored_leaves(run / "checkpoints")
    assert step == STEPS
    return {name: leaf.read((...,)) for name, leaf in leaves.items()}


def assert_same_run(run, whole):
    assert learnt(run) == learnt(whole)
    ours, theirs = state(run), state(whole)
    for part in ("state/params/policy", "state/params/value", "state/optimizer", "source/dealt", "source/beta"):
        assert any(name.startswith(part) for name in theirs), part
    assert ours.keys() == theirs.keys()
    for name, leaf in theirs.items():
        np.testing.assert_array_equal(ours[name], leaf, err_msg=name)
    written = [{path.name: path.read_text() for path in (folder / "rollouts").iterdir()} for folder in (run, whole)]
    assert written[0] == written[1]
    assert len(written[1]) == 3
    assert not list((run / "checkpoints").glob("*tmp*")), "what the killed run left behind is cleared away"


def test_every_point_has_its_count():
    assert COUNTS.keys() == POINTS.keys()
    assert len(POINTS) == 10


def test_killed_in_a_rollout_and_in_a_save(killed_and_resumed):
    """Rollouts ahead of the trainer, where more is underway."""
    kills = [("tokens are written", 2), ("save is not sealed", 2)]
    whole, runs = killed_and_resumed(kills)
    for kill in kills:
        assert_same_run(runs[kill], whole[2])


@pytest.mark.slow
@pytest.mark.parametrize("lag", [None, 2])
def test_killed_at_ten_points(killed_and_resumed, lag):
    whole, runs = killed_and_resumed([(point, lag) for point in POINTS])
    for run in runs.values():
        assert_same_run(run, whole[lag])
