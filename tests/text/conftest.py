import os

import pytest

from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import World


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory) -> Vocabulary:
    """A tiny vocabulary, so small that much Korean falls back to bytes."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [text for language in ("ko", "en", "code") for text in World().documents(language, count=100)]
    Tokenizer(size=420, reserved=4).train(str(folder), texts)
    return Vocabulary(os.path.join(folder, "tokenizer.model"))
