"""Alignment on real text: the folder that HCXJAX_DATA names has pretrain/{ko,en,code} and align, gzipped JSON lines."""

import json
import math
import os

import pytest

from hcxjax.main import main
from hcxjax.objectives.reward_card import RewardCard
from tests.runs import TINY, losses
from tools import judge_answers

FOLDER = os.environ.get("HCXJAX_DATA")
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="HCXJAX_DATA names no folder of real text"),
    pytest.mark.slow,
]

CONVERSATIONS = {
    "ko": "sft_chatbot_ko_train",
    "long_ko": "sft_kochatgpt_conv_ko_train",
    "en": "sft_alpaca_en_demo_train",
    "roleplay_en": "sft_gpteacher_roleplay_train",
}
PREFERENCES = {
    "harmless_ko": "hh_harmless_base_ko_train",
    "harmless_en": "hh_harmless_base_en_train",
    "logickor": "logickor_pairs_ko_train",
    "alpacaeval": "alpacaeval_pairs_train",
}
PROMPTS = {"ko": "rl_prompts_ko_train", "en": "sft_alpaca_en_demo_train"}


def sources(names):
    return {name: f"jsonl:{FOLDER}/align/{file}.jsonl.gz" for name, file in names.items()}


def run(file, **bindings):
    assert (
        main([f"--gin_file=gin/runs/{file}.gin", *(f"--gin.{name}={value}" for name, value in bindings.items())]) == 0
    )


SIZES = [line.replace(" ", "").replace("'", "") for line in TINY.read_text().splitlines() if "DecoderConfig." in line]
SMALL = [*SIZES, "VOCAB_SIZE=4096", "DecoderConfig.max_length=512", "DecoderConfig.remat=none"]
QUIET = "(@JsonLines(),)"


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A model that has read next to nothing, with a tokenizer of the text."""
    folder = tmp_path_factory.mktemp("pretrained")
    languages = {"KOREAN": "ko", "ENGLISH": "en", "CODE": "code"}
    text = {macro: f"jsonl:{FOLDER}/pretrain/{name}/*.jsonl.gz" for macro, name in languages.items()}
    sizes = dict(binding.split("=") for binding in SMALL)
    few = {"Corpus.max_documents": 100, "Tokenizer.sample_bytes": 1_000_000, "STEPS": 2, "BATCH": 4, "LENGTH": 128}
    bare = {"Corpus.cleaning": None, "Corpus.duplicates": None, "Experiment.evaluators": (), "Experiment.watch": None}
    run("folders", RUN_DIR=folder, **text, **sizes, **few, **bare, **{"Experiment.trackers": QUIET})
    return folder


def test_conversations_a_reward_model_and_ppo(pretrained, tmp_path, capsys):
    few = ["STEPS=4", "SAVE_EVERY=2", "EVAL_EVERY=4", f"Experiment.trackers={QUIET}", "KeepPolicy.latest=4"]
    files = {"CONVERSATIONS": CONVERSATIONS, "PREFERENCES": PREFERENCES, "PROMPTS": PROMPTS}
    given = {macro: sources(names) for macro, names in files.items()}
    run("files_chain", FOLDER=tmp_path, PRETRAINED=pretrained, **given, **{"Runs.bindings": (*SMALL, *few)})
    for name in ("sft", "reward", "ppo"):
        found = losses(tmp_path / name)
        assert list(found) == [1, 2, 3, 4] and all(map(math.isfinite, found.values()))
    lines = [json.loads(line) for line in (tmp_path / "reward" / "metrics.jsonl").read_text().splitlines()]
    measured = {name for line in lines for name in line}
    assert {f"eval/preference/{name}/accuracy" for name in PREFERENCES} <= measured
    assert {"eval/preference/floor/bigrams", "eval/preference/like_length/accuracy"} <= measured
    assert set(RewardCard.read(str(tmp_path / "reward")).sources) == set(PROMPTS)
    assert "train on" not in (said := capsys.readouterr().err) and "error" not in said

    pairs = [f"jsonl:{FOLDER}/align/{name}_test.jsonl.gz" for name in ("pandalm", "logickor_pairs_ko")]
    arguments = ["--run", str(tmp_path / "ppo"), "--pairs", *pairs, "--count", "16", "--output", str(tmp_path / "r.md")]
    assert judge_answers.main(arguments) == 0
    report = (tmp_path / "r.md").read_text()
    assert "| bigrams | 0." in report and "32 held-out prompts." in report
    assert [line.split("|")[1].strip() for line in report.splitlines() if line.count("±") == 4] == ["0", "2", "4"]
