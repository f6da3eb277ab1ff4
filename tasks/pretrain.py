"""seqio Tasks of pretraining: the small bilingual world in Korean, English and Python, and their Mixture.

Your own Task goes into a module of yours in the usual seqio way; its examples need a string feature `text`. Name the
module in `Corpus.task_modules` and the Task in `Corpus.sources`.
"""

from collections.abc import Callable, Iterator

from hcxjax.data.sources import add_text_task, import_seqio
from hcxjax.world import LANGUAGES, World

DOCUMENTS = {"train": 10_000_000, "validation": 100_000}
"""Documents of a language and split. The world has no end; a Task has, so that nothing waits for ever."""


def _documents(language: str) -> Callable[[str], Iterator[str]]:
    return lambda split: World().documents(language, split, count=DOCUMENTS[split])


for _language in LANGUAGES:
    add_text_task(f"world_{_language}", _documents(_language), splits=tuple(DOCUMENTS))

import_seqio().MixtureRegistry.add("world", [f"world_{_language}" for _language in LANGUAGES], default_rate=1)
