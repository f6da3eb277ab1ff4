import json
import os

import pytest

from hcxjax.data.corpus import Corpus
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import LANGUAGES, World


@pytest.fixture(scope="session")
def model_path(tmp_path_factory) -> str:
    """A tiny tokenizer's model file."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [text for language in LANGUAGES for text in World().documents(language, count=100)]
    Tokenizer(size=420, reserved=4).train(str(folder), texts)
    return os.path.join(folder, "tokenizer.model")


@pytest.fixture(scope="session")
def vocabulary(model_path) -> Vocabulary:
    return Vocabulary(model_path)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory, model_path) -> Corpus:
    """Three sources of JSON lines whose stores are written."""
    folder = tmp_path_factory.mktemp("corpus")
    for language in LANGUAGES:
        lines = [json.dumps({"text": text}) for text in World().documents(language, count=150)]
        (folder / f"{language}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    sources = {language: f"jsonl:{folder}/{language}.jsonl" for language in LANGUAGES}
    corpus = Corpus(sources, Tokenizer(size=420, path=model_path), str(folder / "run"), validation_share=0.2)
    for split in ("train", "validation"):
        corpus.stores(split)
    return corpus
