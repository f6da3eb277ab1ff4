import openai
import pytest

from hcxjax.data.tokenizer import Tokenizer
from hcxjax.text.vocabulary import Vocabulary
from hcxjax.world import World
from tests.serving.fakes import KEY, FakeEngine, running


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory):
    """So small that most Korean syllables are bytes: tokens end in the middle of characters."""
    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [text for language in ("ko", "en", "code") for text in World().documents(language, count=60)]
    Tokenizer(size=420).train(str(folder), texts)
    return Vocabulary(str(folder / "tokenizer.model"))


@pytest.fixture(scope="module")
def house(vocabulary):
    """A server over the fake engine that the tests of a module share."""
    with running(FakeEngine(vocabulary), vocabulary) as found:
        yield found


@pytest.fixture
def client(house):
    with openai.OpenAI(base_url=house.url, api_key=KEY, max_retries=0, timeout=20) as found:
        yield found
