import tasks.wikipedia
from hcxjax.data.sources import import_seqio, import_tensorflow

ARTICLE = (
    "\n_START_ARTICLE_\n솔내 다리\n_START_PARAGRAPH_\n솔내 다리는 강을 건넌다._NEWLINE_다리는 길다.\n"
    "_START_SECTION_\n역사\n_START_PARAGRAPH_\n오래되었다."
)


def test_marks_become_lines():
    dataset = import_tensorflow().data.Dataset.from_tensors({"text": ARTICLE, "wikidata_id": "Q0"})
    (found,) = tasks.wikipedia.plain(dataset).as_numpy_iterator()
    assert found.keys() == {"text"}
    assert found["text"].decode() == ("솔내 다리\n솔내 다리는 강을 건넌다.\n\n다리는 길다.\n\n역사\n오래되었다.")


def test_both_languages_are_registered():
    for language in ("ko", "en"):
        task = import_seqio().TaskRegistry.get(f"wiki40b_{language}")
        assert task.source.tfds_dataset.name == f"wiki40b/{language}:1.3.0"
