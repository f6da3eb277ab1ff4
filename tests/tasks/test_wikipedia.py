import subprocess
import sys

import pytest

import tasks.wikipedia
from hcxjax.data.readers import Skips
from hcxjax.data.sources import import_seqio, import_tensorflow, open_source

seqio, tf = import_seqio(), import_tensorflow()
BRIDGE = (
    "\n_START_ARTICLE_\n솔내 다리\n_START_PARAGRAPH_\n솔내를 건너는 다리이다.\n_START_SECTION_\n역사\n"
    "_START_PARAGRAPH_\n나무로 지었다._NEWLINE_뒤에 돌로 다시 지었다.\n_START_SECTION_\n같이 보기\n"
)
PLAIN_BRIDGE = "솔내 다리\n\n솔내를 건너는 다리이다.\n\n역사\n\n나무로 지었다.\n뒤에 돌로 다시 지었다.\n\n같이 보기"


def plain(text):
    articles = tf.data.Dataset.from_tensors({"text": text, "wikidata_id": "Q0"})
    (article,) = tasks.wikipedia.plain(articles).as_numpy_iterator()
    assert list(article) == ["text"]
    return article["text"].decode()


def test_titles_sections_and_paragraphs_stand_apart():
    assert plain(BRIDGE) == PLAIN_BRIDGE


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One._NEWLINE__NEWLINE_Two. _NEWLINE_ Three.", "One.\nTwo.\nThree."),
        (
            "\n_START_SECTION_\n_START_SECTION_\nMills_NEWLINE_\n_START_PARAGRAPH_\n_NEWLINE_Old._NEWLINE_",
            "Mills\n\nOld.",
        ),
        (
            "The names START_ARTICLE, __init__ and NEWLINE are kept.",
            "The names START_ARTICLE, __init__ and NEWLINE are kept.",
        ),
        ("", ""),
    ],
)
def test_no_mark_is_left_and_nothing_else_goes(text, expected):
    assert plain(text) == expected


@pytest.mark.parametrize("language", ["ko", "en"])
def test_the_tasks_are_registered(language):
    task = seqio.TaskRegistry.get(f"wiki40b_{language}")
    assert task.source.tfds_dataset.name == f"wiki40b/{language}:1.3.0"
    assert set(task.splits) == {"train", "validation"}


def test_importing_them_opens_no_connection():
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise SystemExit('a connection was opened')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "import tasks.wikipedia\n"
        "from hcxjax.data.sources import import_seqio\n"
        "assert not import_seqio().LazyTfdsLoader._MEMOIZED_BUILDERS, 'a data set was looked for'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_prepared_data_set_is_read_through_the_task(tmp_path, monkeypatch):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources", reason="tensorflow-datasets needs it to write, but does not install it")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="wiki40b",
        config="ko",
        version="1.3.0",
        features=tfds.features.FeaturesDict({"text": tfds.features.Text()}),
        split_datasets={name: tf.data.Dataset.from_tensors({"text": BRIDGE}) for name in ("train", "validation")},
        data_dir=str(tmp_path),
        disable_shuffling=True,
    )
    loader = seqio.TaskRegistry.get("wiki40b_ko").source.tfds_dataset
    monkeypatch.setattr(loader, "_data_dir", str(tmp_path))  # as TFDS_DATA_DIR does, which TFDS reads at its import
    source = open_source("wiki40b_ko", 10**6)
    assert source.own_validation
    assert source.parts("train") == 1
    skips = Skips()
    assert [document.text for document in source.documents("train", 0, skips)] == [PLAIN_BRIDGE]
    assert not skips.counts
