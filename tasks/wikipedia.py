"""seqio Tasks of Wikipedia in Korean and English, from TensorFlow Datasets' wiki40b with its layout marks taken out.

Where TFDS keeps its files is its own setting: `TFDS_DATA_DIR`, or ~/tensorflow_datasets.
"""

from typing import Any

from hcxjax.data.sources import import_seqio, import_tensorflow, text_features

VERSION = "1.3.0"
_MARKS = (
    (r"\s*_START_(ARTICLE|SECTION)_\s*", "\n\n"),  # a title on the next line
    (r"\s*_START_PARAGRAPH_\s*", "\n"),
    (r"_NEWLINE_", "\n\n"),
    (r"^\s+|\s+$", ""),
)


def plain(dataset: Any) -> Any:
    """Titles on lines of their own, a blank line between paragraphs, none of wiki40b's marks."""
    strings = import_tensorflow().strings

    def told(article: Any) -> dict[str, Any]:
        text = article["text"]
        for mark, instead in _MARKS:
            text = strings.regex_replace(text, mark, instead)
        return {"text": text}

    return dataset.map(told)


for _language in ("ko", "en"):
    import_seqio().TaskRegistry.add(
        f"wiki40b_{_language}",
        import_seqio().TfdsDataSource(f"wiki40b/{_language}:{VERSION}"),
        preprocessors=[plain],
        output_features=text_features(),
    )
