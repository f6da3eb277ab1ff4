import json

import pytest

from hcxjax.data.readers import CODE_EXTENSIONS, Skips
from hcxjax.data.sources import Spec, add_text_task, documents, import_seqio, import_tensorflow


def read(source, split="train", share=0.3, limit=10_000):
    skips = Skips()
    texts = documents(source, split, validation_share=share, max_document_bytes=limit, skips=skips)
    return list(texts), skips


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("world_ko", ("task", "world_ko", {})),
        ("jsonl:a/*.jsonl?field=content", ("jsonl", "a/*.jsonl", {"field": "content"})),
        ("jsonl:part-?.jsonl", ("jsonl", "part-?.jsonl", {"field": "text"})),
        ("jsonl:part-?.jsonl?field=b", ("jsonl", "part-?.jsonl", {"field": "b"})),
        ("files:src", ("files", "src", {"extensions": ",".join(CODE_EXTENSIONS)})),
        ("tfds:wiki40b/ko:1.3.0", ("tfds", "wiki40b/ko:1.3.0", {"field": "text", "data_dir": ""})),
    ],
)
def test_names_of_sources(text, expected):
    spec = Spec.parse(text)
    assert (spec.scheme, spec.path, spec.options) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parquet:a", "unknown scheme 'parquet'; Corpus.sources knows jsonl, text, files, tfds"),
        ("jsonl:a?feild=b", "unknown option feild; jsonl: knows field"),
        ("text:", "no path after text:"),
    ],
)
def test_wrong_names_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        Spec.parse(text)


def test_splits_are_disjoint_by_text_and_whole(tmp_path):
    texts = [f"문서 {number % 300}" for number in range(400)]  # a hundred occur twice
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = f"jsonl:{tmp_path}/a.jsonl"
    train, validation = read(source)[0], read(source, "validation")[0]
    assert sorted(train + validation) == sorted(texts)
    assert not set(train) & set(validation)
    assert 80 < len(validation) < 160


def test_skipped_records_are_counted_through_tensorflow(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n{"text"\n{"body": 1}\n{"text": "two"}\n')
    texts, skips = read(f"jsonl:{tmp_path}/a.jsonl", share=1e-9)
    assert texts == ["one", "two"]
    assert skips.counts == {"malformed JSON": 1, "no field 'text'": 1}


def test_text_and_source_folders_are_read(tmp_path):
    for name in ("a.txt", "b.py", "c.rs"):
        (tmp_path / name).write_text(f"in {name}\r\n", newline="")
    assert read(f"text:{tmp_path}", share=1e-9)[0] == ["in a.txt\r\n"]
    assert sorted(read(f"files:{tmp_path}", share=1e-9)[0]) == ["in b.py\r\n", "in c.rs\r\n"]
    assert read(f"files:{tmp_path}?extensions=rs", share=1e-9)[0] == ["in c.rs\r\n"]


def test_a_users_task_is_read_with_its_own_validation_split():
    add_text_task("mine", lambda split: iter([f"{split} {number}" for number in range(200)]))
    assert read("mine")[0] == [f"train {number}" for number in range(200)]
    assert read("mine", "validation")[0][0] == "validation 0"


def test_a_users_task_may_hold_what_is_no_document():
    seqio, tensorflow = import_seqio(), import_tensorflow()

    def dataset(split, shuffle_files, seed=None):
        texts = [b"fine", b"\xff", b"", b"x" * 20_000]
        return tensorflow.data.Dataset.from_tensor_slices({"text": texts, "label": [1, 2, 3, 4]})

    source = seqio.FunctionDataSource(dataset, splits=("train",))
    vocabulary = seqio.PassThroughVocabulary(1)
    feature = seqio.Feature(vocabulary, add_eos=False, dtype=tensorflow.string, rank=0)
    seqio.TaskRegistry.add("raw", source, preprocessors=[], output_features={"text": feature})
    texts, skips = read("raw", share=1e-9)
    assert texts == ["fine"]
    assert skips.counts == {"invalid UTF-8": 1, "empty text": 1, "over max_document_bytes": 1}
    assert skips.examples["invalid UTF-8"] == "raw:1"


def test_a_task_without_text_and_an_unknown_one_are_named():
    seqio, tensorflow = import_seqio(), import_tensorflow()
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files, seed=None: tensorflow.data.Dataset.from_tensors({"targets": "x"}),
        splits=("train",),
    )
    seqio.TaskRegistry.add("textless", source, preprocessors=[], output_features={})
    with pytest.raises(ValueError, match=r"Task 'textless' has features targets, but no 'text'"):
        read("textless")
    with pytest.raises(ValueError, match=r"'absent' is no registered seqio Task .*Corpus.task_modules"):
        read("absent")
    with pytest.raises(ValueError, match="split 'test' is unknown"):
        read("textless", "test")


def test_a_tfds_name_is_read_from_its_data_dir(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("importlib_resources", reason="tensorflow-datasets needs it to write, but does not install it")
    data = import_tensorflow().data.Dataset.from_tensor_slices({"body": ["하나", "둘", "셋"]})
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"body": tfds.features.Text()}),
        split_datasets={"train": data, "validation": data},
        data_dir=str(tmp_path),
        disable_shuffling=True,
    )
    source = f"tfds:tiny:1.0.0?field=body&data_dir={tmp_path}"
    assert sorted(read(source)[0]) == ["둘", "셋", "하나"]
    assert len(read(source, "validation")[0]) == 3


@pytest.mark.parametrize("name", ["no_such_set:1.0.0", "versionless"])
def test_a_tfds_name_that_is_none_is_named(name):
    with pytest.raises(ValueError, match=rf"tfds:{name} cannot be read \(.*Corpus.sources"):
        read(f"tfds:{name}")
