import itertools

import pytest

import tasks.pretrain
from hcxjax.data.readers import Skips
from hcxjax.data.sources import import_seqio, open_source
from hcxjax.world import LANGUAGES, World

seqio = import_seqio()


@pytest.mark.parametrize("split", tasks.pretrain.DOCUMENTS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_tasks_give_the_worlds_documents(language, split):
    skips = Skips()
    source = open_source(f"world_{language}", 10**6)
    assert source.own_validation
    assert source.parts(split) == 1
    texts = [document.text for document in itertools.islice(source.documents(split, 0, skips), 70)]
    assert texts == list(World().documents(language, split, count=70))
    assert not skips.counts


def test_the_mixture_has_equal_rates():
    mixture = seqio.MixtureRegistry.get("world")
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {f"world_{name}": 1 for name in LANGUAGES}
    examples = itertools.islice(mixture.get_dataset(None, split="train", shuffle=False).as_numpy_iterator(), 3)
    assert all(example["text"] for example in examples)


def test_a_mixture_is_a_source_that_gives_the_same_documents_every_time():
    def first(count: int) -> list[str]:
        found = open_source("world", 10**6).documents("train", 0, Skips())
        return [document.text for document in itertools.islice(found, count)]

    once = first(24)
    assert once == first(24)
    known = {language: set(World().documents(language, count=30)) for language in LANGUAGES}
    assert all(any(text in known[language] for text in once) for language in LANGUAGES)
