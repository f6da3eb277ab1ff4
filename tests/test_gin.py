"""Every shipped run parses, has the shape it says, and resolves to the configuration that is held as a golden file."""

import dataclasses
import os
import re
from pathlib import Path

import jax
import pytest

from hcxjax.claims import bindings_of
from hcxjax.data.comparisons import Comparisons
from hcxjax.data.conversations import Conversations
from hcxjax.data.packed import PackedTokens
from hcxjax.data.rollouts.source import Rollouts
from hcxjax.main import Runs, configure
from hcxjax.mesh import unbox
from hcxjax.objectives.lora import LoRA
from hcxjax.objectives.ppo import PPO
from hcxjax.objectives.reward_model import PairwiseReward
from hcxjax.partition import by_path, covers, split

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden" / "runs"
RUNS = sorted(path.stem for path in (ROOT / "gin" / "runs").glob("*.gin"))
MODELS = sorted(path.stem for path in (ROOT / "gin" / "models").glob("*.gin"))
HOLES = {
    "continue_seed": ["KOREAN=text:ko", "ENGLISH=text:en", "CODE=files:src"],
    "folders": ["KOREAN=text:ko", "ENGLISH=text:en", "CODE=files:src"],
    "files_sft": ["CONVERSATIONS=jsonl:chat.jsonl"],
    "files_reward": ["PREFERENCES=jsonl:pairs.jsonl"],
    "files_ppo": ["PROMPTS=jsonl:prompts.jsonl"],
    "files_chain": [
        "CONVERSATIONS={'ko': 'jsonl:chat.jsonl'}",
        "PREFERENCES={'ko': 'jsonl:pairs.jsonl'}",
        "PROMPTS={'ko': 'jsonl:prompts.jsonl'}",
    ],
    "ppo_seed": ["PROMPTS=jsonl:prompts.jsonl"],
    "sft_seed": ["CONVERSATIONS=jsonl:chat.jsonl"],
    "sft_seed_lora": ["CONVERSATIONS=jsonl:chat.jsonl"],
    "pretrain_125m": ["CODE=files:src"],
    "pretrain_1b": ["CODE=files:src"],
    "pretrain_1b_long": ["CODE=files:src"],
    "pretrain_pod": ["CODE=files:src"],
    "pretrain_pod_long": ["CODE=files:src"],
    "reward_seed": ["PREFERENCES=jsonl:pairs.jsonl"],
}
"""What a user has to fill in."""


IMPORTED = ["INIT_FROM=models/seed_0.5b", "Tokenizer.path=models/seed_0.5b/tokenizer/tokenizer.json"]
"""What an imported model's model.gin says beside its sizes, which are those of gin/models/seed_0.5b.gin."""


def resolve(run: str):
    files, holes = [f"gin/runs/{run}.gin"], HOLES.get(run, [])
    if "_seed" in run:
        return configure([*files, "gin/models/seed_0.5b.gin"], [*holes, *IMPORTED])
    if "_pod" in run:
        return configure([*files, "gin/models/seed_think_14b.gin"], holes)
    return configure(files, holes)


@pytest.mark.parametrize("run", RUNS)
def test_a_run_resolves_to_its_golden_configuration(run):
    _, operative = resolve(run)
    golden = GOLDEN / f"{run}.gin"
    if os.environ.get("HCXJAX_UPDATE_GOLDEN"):
        golden.parent.mkdir(parents=True, exist_ok=True)
        golden.write_text(operative)
    ours, held = bindings_of(operative), bindings_of(golden.read_text())
    changed = {
        name: (held.get(name), ours.get(name)) for name in ours.keys() | held.keys() if ours.get(name) != held.get(name)
    }
    assert not changed, "if this is meant: HCXJAX_UPDATE_GOLDEN=1 pytest tests/test_gin.py, and commit the golden file"


@pytest.mark.parametrize("run", RUNS)
def test_a_run_s_parameters_have_the_shapes_of_its_model(run, monkeypatch):
    for experiment in experiments(resolve(run)[0], monkeypatch):
        shapes = jax.eval_shape(lambda objective=experiment.objective: objective.init(jax.random.key(0)))
        objective, source = experiment.objective, experiment.source
        if isinstance(objective, LoRA):
            objective, shapes = objective.objective, shapes["base"]
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == expected(objective)
        assert (source.width if isinstance(source, Rollouts) else source.length) <= objective.model.max_length
        names = data_of(source).names
        assert sorted(getattr(objective, "sources", names)) == names


def experiments(job, monkeypatch):
    """The training runs of a job: itself, or all of a list, resolved with the bindings that the list gives them."""
    if not isinstance(job, Runs):
        return [job]
    listed = []
    monkeypatch.setattr("hcxjax.main.started", lambda one, _: not listed.append(one))
    assert job.run() and len(listed) == len(job.runs)
    assert [one.run_dir for one in listed] == [f"{job.folder}/{name}" for name, *_ in job.runs]
    return listed


def expected(objective):
    """How many parameters an objective has: a decoder's, a scalar model's, or both."""

    def scalar(model):
        return model.parameters + model.embed_dim + 1

    if isinstance(objective, PPO):
        return objective.model.parameters + scalar(objective.critic)
    return scalar(objective.model) if isinstance(objective, PairwiseReward) else objective.model.parameters


def data_of(source):
    """What a source reads."""
    kinds = {PackedTokens: "corpus", Conversations: "dialogues", Comparisons: "preferences", Rollouts: "prompts"}
    return getattr(source, kinds[type(source)])


@pytest.mark.parametrize("run", RUNS)
def test_a_run_file_opens_with_its_command_and_only_composes(run):
    text = (ROOT / "gin" / "runs" / f"{run}.gin").read_text()
    assert text.startswith("# python -m hcxjax.main ")
    assert len(text.splitlines()) <= 30
    # Stage, model, task and mesh; a model that comes after brings its own file; another run, and a stage or an adapter;
    # a list names its files.
    held = {"seed": 3, "pod": 3, "long": 2, "lora": 2, "chain": 0}
    assert text.count("include ") == held.get(run.rpartition("_")[2], 4)


@pytest.mark.parametrize("model", MODELS)
def test_a_model_file_opens_with_its_parameter_count(model):
    text = (ROOT / "gin" / "models" / f"{model}.gin").read_text()
    said = int(re.match(r"# ([\d,]+) parameters", text)[1].replace(",", ""))
    run = (ROOT / "gin" / "runs" / "quickstart.gin").read_text().replace("models/quickstart.gin", f"models/{model}.gin")
    bindings = [line for line in run.splitlines() if " = " in line]
    includes = re.findall(r"include '(.*)'", run)
    experiment, _ = configure(includes, bindings)
    assert experiment.objective.model.parameters == said


def test_seed_models_have_the_published_counts():
    def said(model: str) -> str:
        return (ROOT / "gin" / "models" / f"{model}.gin").read_text().split()[1]

    assert said("seed_0.5b") == "566,281,216"
    assert said("seed_think_14b") == "14,748,112,896"


def test_no_package_hides_gin():
    assert not (ROOT / "gin" / "__init__.py").exists(), "`import gin` would find it in place of gin-config"


@pytest.mark.parametrize(
    ("adapter", "run"),
    [
        ("lora", "quickstart_sft"),
        ("lora_dpo", "quickstart_dpo"),
        ("lora_reward_model", "quickstart_reward"),
        ("lora_ppo", "quickstart_ppo"),
    ],
)
def test_an_adapter_fits_its_stage(adapter, run):
    """The stage's own objective is adapted, evaluators and sources know, and every frozen leaf comes from somewhere."""
    plain, _ = configure([f"gin/runs/{run}.gin"])
    tuned, _ = configure([f"gin/runs/{run}.gin", f"gin/adapters/{adapter}.gin"])
    lora = tuned.objective
    assert isinstance(lora, LoRA)
    assert lora.objective == plain.objective
    for evaluator, before in zip(tuned.evaluators, plain.evaluators, strict=True):
        if hasattr(before, "objective"):
            assert evaluator.objective == dataclasses.replace(lora, objective=before.objective)
    shapes = unbox(jax.eval_shape(lora.init, jax.random.key(0)))
    trained, frozen = (by_path(part) for part in split(shapes, tuned.trains))
    tuned.warm_start.check_frozen(frozen)
    origins, fresh = tuned.warm_start.origins, tuned.warm_start.fresh
    assert all(any(covers(prefix, name) for prefix in origins) for name in frozen)
    assert all(any(covers(prefix, name) for prefix in fresh) for name in trained)
    assert {origin.folder for origin in origins.values()} == set(plain.warm_start.folders)
    if isinstance(getattr(plain.source, "objective", None), PPO):
        assert tuned.source.objective == lora
