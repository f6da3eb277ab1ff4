import itertools

import pytest
import seqio

import tasks.pretrain
from hcxjax.data.readers import Skips
from hcxjax.data.sources import documents
from hcxjax.world import LANGUAGES, World


@pytest.mark.parametrize("split", tasks.pretrain.DOCUMENTS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_tasks_give_the_worlds_documents(language, split):
    skips = Skips()
    texts = documents(f"world_{language}", split, validation_share=0.1, max_document_bytes=10**6, skips=skips)
    assert list(itertools.islice(texts, 70)) == list(World().documents(language, split, count=70))
    assert not skips.counts


def test_the_mixture_has_equal_rates():
    mixture = seqio.MixtureRegistry.get("world")
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {f"world_{name}": 1 for name in LANGUAGES}
    examples = itertools.islice(mixture.get_dataset(None, split="train", shuffle=False).as_numpy_iterator(), 3)
    assert all(example["text"] for example in examples)


def test_a_mixture_is_a_source_that_gives_the_same_documents_every_time():
    def first(count: int) -> list[str]:
        texts = documents("world", "train", validation_share=0.1, max_document_bytes=10**6, skips=Skips())
        return list(itertools.islice(texts, count))

    once = first(24)
    assert once == first(24)
    known = {language: set(World().documents(language, count=30)) for language in LANGUAGES}
    assert all(any(text in known[language] for text in once) for language in LANGUAGES)
