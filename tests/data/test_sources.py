import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from hcxjax.data import sources
from hcxjax.data.readers import CODE_EXTENSIONS, Skips
from hcxjax.data.sources import (
    Document,
    Spec,
    add_text_task,
    file_source,
    held_out,
    import_seqio,
    import_tensorflow,
    open_source,
    task_of,
    text_features,
)

TFDS = {"field": "text", "data_dir": "", "train": "train", "validation": "validation"}


def read(source, split="train", share=0.3, limit=10_000):
    """Texts of a split as a corpus takes them, and what was skipped."""
    skips, opened = Skips(), open_source(source, limit)
    read_split = split if opened.own_validation else "train"
    found = [opened.documents(read_split, part, skips) for part in range(opened.parts(read_split))]
    texts = [document.text for part in found for document in part]
    if not opened.own_validation:
        texts = [text for text in texts if held_out(text, share) == (split == "validation")]
    return texts, skips


def parts_of(source, split="train", limit=10_000):
    """(name, documents) of each part."""
    opened = open_source(source, limit)
    return [
        (opened.part_name(split, part), list(opened.documents(split, part, Skips())))
        for part in range(opened.parts(split))
    ]


def write_jsonl(path, *texts):
    path.write_text("\n".join(json.dumps({"text": text}) for text in texts))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("world_ko", ("task", "world_ko", {})),
        ("jsonl:a/*.jsonl?field=content", ("jsonl", "a/*.jsonl", {"field": "content"})),
        ("jsonl:part-?.jsonl", ("jsonl", "part-?.jsonl", {"field": "text"})),
        ("jsonl:part-?.jsonl?field=b", ("jsonl", "part-?.jsonl", {"field": "b"})),
        ("files:src", ("files", "src", {"extensions": ",".join(CODE_EXTENSIONS)})),
        ("tfds:wiki40b/ko:1.3.0", ("tfds", "wiki40b/ko:1.3.0", TFDS)),
        (
            "tfds:c4/multilingual?train=ko[:10%]&validation=ko-validation",
            ("tfds", "c4/multilingual", {**TFDS, "train": "ko[:10%]", "validation": "ko-validation"}),
        ),
    ],
)
def test_names_of_sources(text, expected):
    spec = Spec.parse(text)
    assert (spec.scheme, spec.path, spec.options) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("csv:a", "unknown scheme 'csv'; Corpus.sources knows jsonl, parquet, text, files, tfds"),
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


def test_the_held_out_share_does_not_depend_on_the_file(tmp_path):
    texts = [f"문서 {number}" for number in range(2000)]
    chosen = {text for text in texts if held_out(text, 0.1)}
    assert 150 < len(chosen) < 250
    assert chosen < {text for text in texts if held_out(text, 0.2)}
    write_jsonl(tmp_path / "a.jsonl", *texts)
    assert set(read(f"jsonl:{tmp_path}/a.jsonl", "validation", share=0.1)[0]) == chosen


def test_a_file_is_a_part_and_its_records_are_numbered(tmp_path):
    for name in ("b", "a"):
        write_jsonl(tmp_path / f"{name}.jsonl", *(f"{name}{number}" for number in range(3)))
    expected = [(f"{name}.jsonl", [Document(number, f"{name}{number}") for number in range(3)]) for name in ("a", "b")]
    assert parts_of(f"jsonl:{tmp_path}") == expected
    for name in ("b", "a"):
        table = pyarrow.table({"body": [f"{name}{number}" for number in range(3)]})
        parquet.write_table(table, tmp_path / f"{name}.parquet")
    assert parts_of(f"parquet:{tmp_path}/*.parquet?field=body") == [
        (name.replace("jsonl", "parquet"), found) for name, found in expected
    ]


def test_small_files_are_grouped_in_shuffled_order(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "GROUP", 4)
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text(f"text {number}")
    parts = parts_of(f"text:{tmp_path}")
    texts = [document.text for _, found in parts for document in found]
    assert [[document.record for document in found] for _, found in parts] == [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1]]
    assert sorted(texts) == sorted(f"text {number}" for number in range(10)) != texts
    last = [document.text.removeprefix("text ") for document in parts[2][1]]
    assert parts[2][0] == "{}.txt..{}.txt".format(*last)
    (tmp_path / f"{last[0]}.txt").unlink()
    assert parts_of(f"text:{tmp_path}")[2][0] == f"{last[1]}.txt"


def test_files_have_train_alone_and_can_be_pickled(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", "one")
    opened = pickle.loads(pickle.dumps(open_source(f"jsonl:{tmp_path}/a.jsonl", 10_000)))
    assert not opened.own_validation
    assert list(opened.documents("train", 0, Skips())) == [Document(0, "one")]
    with pytest.raises(ValueError, match=r"split 'validation' is unknown; jsonl:.* has 'train' alone"):
        opened.parts("validation")


@pytest.mark.parametrize("scheme", ["jsonl", "files"])
def test_a_fingerprint_follows_the_contents_and_not_the_folder(tmp_path, scheme):
    def fingerprint(folder):
        return open_source(
            f"{scheme}:{folder}?{'field=text' if scheme == 'jsonl' else 'extensions=jsonl'}", 99
        ).fingerprint("train", 0)

    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        (folder / "deep").mkdir(parents=True)
        write_jsonl(folder / "deep" / "a.jsonl", "one")
        os.utime(folder / "deep" / "a.jsonl", ns=(1, 10**18))
    known = fingerprint(here)
    assert fingerprint(there) == known
    os.utime(there / "deep" / "a.jsonl", ns=(1, 10**18 + 1))
    assert fingerprint(there) != known
    write_jsonl(here / "deep" / "a.jsonl", "other")
    os.utime(here / "deep" / "a.jsonl", ns=(1, 10**18))
    assert fingerprint(here) != known


def test_files_are_read_without_tensorflow(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", "one")
    program = (
        "import sys; from hcxjax.data.readers import Skips; from hcxjax.data.sources import open_source\n"
        f"found = list(open_source('jsonl:{tmp_path}/a.jsonl', 99).documents('train', 0, Skips()))\n"
        "print(len(found), [name for name in ('tensorflow', 'seqio', 'pyarrow', 'zstandard') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "1 []", done.stderr


def test_a_task_over_files_gives_what_reading_them_gives(tmp_path):
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", *(f"{name}{number}" for number in range(100)))
    with open(tmp_path / "b.jsonl", "ab") as file:
        file.write(b'\n{"text"\n{"body": 1}\n')
    source = f"jsonl:{tmp_path}"
    direct, skips = read(source, share=1e-9)
    task = task_of(source)
    dataset = task.get_dataset(None, split="train", shuffle=False)
    assert [example["text"].decode() for example in dataset.as_numpy_iterator()] == direct
    assert len(direct) == 300
    assert skips.counts == task.source.skips.counts == {"malformed JSON": 1, "no field 'text'": 1}


def test_seqio_shards_files_and_shuffles_them(tmp_path):
    for name in ("a", "b", "c"):
        write_jsonl(tmp_path / f"{name}.jsonl", *(f"{name}{number}" for number in range(5)))
    seqio, task = import_seqio(), task_of(f"jsonl:{tmp_path}")

    def texts(**options):
        return [example["text"].decode() for example in task.source.get_dataset(**options).as_numpy_iterator()]

    assert task.source.list_shards("train") == [str(tmp_path / f"{name}.jsonl") for name in "abc"]
    shard = seqio.ShardInfo(index=0, num_shards=2)
    assert texts(shuffle=False, shard_info=shard) == [f"{name}{number}" for name in "ac" for number in range(5)]
    orders = {"".join(text[0] for text in texts(shuffle=True, seed=seed))[::5] for seed in range(6)}
    assert len(orders) > 1
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    with pytest.raises(ValueError, match="num_shards is 4; split 'train' has 3 shards"):
        texts(shard_info=seqio.ShardInfo(index=0, num_shards=4))


def test_a_users_task_over_files_is_read_in_parts_with_its_skips(tmp_path):
    """The shards of the Task are its files; what a reader below the Task skips is counted, and a file's change seen."""
    for name in ("a", "b"):
        write_jsonl(tmp_path / f"{name}.jsonl", f"{name} one", "", f"{name} two")
    write_jsonl(tmp_path / "held.jsonl", "held")
    seqio = import_seqio()
    lower = file_source({"train": f"jsonl:{tmp_path}/[ab].jsonl", "validation": f"jsonl:{tmp_path}/held.jsonl"})

    def shout(dataset):
        return dataset.map(lambda example: {"text": import_tensorflow().strings.upper(example["text"])})

    seqio.TaskRegistry.add("notes", lower, preprocessors=[shout], output_features=text_features())
    assert parts_of("notes") == [
        (f"{name}.jsonl", [Document(0, f"{name.upper()} ONE"), Document(1, f"{name.upper()} TWO")]) for name in "ab"
    ]
    assert parts_of("notes", "validation") == [("held.jsonl", [Document(0, "HELD")])]
    skips, opened = Skips(), open_source("notes", 10_000)
    list(opened.documents("train", 1, skips))
    assert skips == Skips({"empty text": 1}, {"empty text": f"{tmp_path}/b.jsonl:2"})
    known = opened.fingerprint("train", 1)
    assert known != opened.fingerprint("train", 0)
    write_jsonl(tmp_path / "b.jsonl", "changed")
    assert known != opened.fingerprint("train", 1)


def test_a_task_without_shards_or_train_and_a_source_that_is_no_file_are_named(tmp_path):
    seqio = import_seqio()
    absent = seqio.TextLineDataSource({"train": str(tmp_path / "nothing*")})
    seqio.TaskRegistry.add("shardless", absent, preprocessors=[], output_features={})
    with pytest.raises(ValueError, match="source 'shardless' has no shard"):
        open_source("shardless", 99)
    add_text_task("trainless", lambda split: iter([]), splits=("validation",))
    with pytest.raises(ValueError, match=r"source 'trainless' has no split 'train' \(its splits: validation\)"):
        open_source("trainless", 99)
    with pytest.raises(ValueError, match="file_source: train is 'tfds:wiki40b'; it must be a path to files"):
        file_source({"train": "tfds:wiki40b"})


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
        download_config=tfds.download.DownloadConfig(num_shards=3),
    )
    source = f"tfds:tiny:1.0.0?field=body&data_dir={tmp_path}"
    assert sorted(read(source)[0]) == ["둘", "셋", "하나"]
    assert len(read(source, "validation")[0]) == 3
    names, found = zip(*parts_of(source), strict=True)
    assert list(names) == [f"tiny-train.tfrecord-{number:05d}-of-00003" for number in range(3)]
    assert sorted(document for part in found for document in part) == [(0, "둘"), (0, "셋"), (0, "하나")]
    assert read(f"{source}&train=validation&validation=train[:1]")[0] == read(source, "validation")[0]
    assert len(read(f"{source}&train=validation&validation=train[:1]", "validation")[0]) == 1
    with pytest.raises(ValueError, match=r"has no split 'ko'; give train= one of train, validation"):
        read(f"{source}&train=ko")


@pytest.mark.parametrize("name", ["no_such_set:1.0.0", "versionless"])
def test_a_tfds_name_that_is_none_is_named(name):
    with pytest.raises(ValueError, match=rf"tfds:{name} cannot be read \(.*Corpus.sources"):
        read(f"tfds:{name}")
