"""seqio Tasks of Wikipedia: `wiki40b_ko` and `wiki40b_en`, from TensorFlow Datasets, as plain text.

Nothing is looked for until a Task is read. What is not there is then fetched and prepared, into TFDS's own folder:
~/tensorflow_datasets, or the one that the environment variable TFDS_DATA_DIR names.
"""

from collections.abc import Sequence
from typing import Any

from hcxjax.data.sources import SPLITS, import_seqio, import_tensorflow, text_features

LANGUAGES = ("ko", "en")

seqio, tf = import_seqio(), import_tensorflow()


class _Fetched(seqio.TfdsDataSource):
    """A data set that is prepared when its shards are first asked for; TFDS lists none before."""

    def list_shards(self, split: str) -> Sequence[str]:
        self.tfds_dataset.builder.download_and_prepare()
        return super().list_shards(split)


def plain(dataset: Any) -> Any:
    """Articles without the layout marks of wiki40b.

    The title, the name of a section and its text stand apart by blank lines; _NEWLINE_, within a text, is a line end.
    """

    def text_of(article: dict[str, Any]) -> dict[str, Any]:
        space = r"(?:\s|_NEWLINE_)*"
        text = tf.strings.regex_replace(
            article["text"], rf"(?:{space}_START_(?:ARTICLE|SECTION|PARAGRAPH)_)+{space}", "\n\n"
        )
        text = tf.strings.regex_replace(text, r"(?:\s*_NEWLINE_)+\s*", "\n")
        return {"text": tf.strings.strip(text)}

    return dataset.map(text_of)


for _language in LANGUAGES:
    seqio.TaskRegistry.add(
        f"wiki40b_{_language}",
        _Fetched(f"wiki40b/{_language}:1.3.0", splits=SPLITS),
        preprocessors=[plain],
        output_features=text_features(),
    )
