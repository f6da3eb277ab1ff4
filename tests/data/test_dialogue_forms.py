"""Records of the common forms, and what is wrong with others; files of records, damaged ones too."""

import gzip
import hashlib

import pytest

from hcxjax.data.dialogue_forms import DialogueError, dialogue_of
from hcxjax.data.readers import Skips
from hcxjax.data.records import read_records


def turns(*contents):
    return [("user", "assistant")[number % 2] + ": " + content for number, content in enumerate(contents)]


def said(record):
    return [f"{role}: {content}" for role, content in dialogue_of(record)[0]]


MESSAGES = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        ({"messages": MESSAGES}, turns("q", "a")),
        ({"messages": [{"role": "system", "content": "s"}, *MESSAGES]}, ["system: s", *turns("q", "a")]),
        ({"messages": MESSAGES + MESSAGES, "id": 3}, turns("q", "a", "q", "a")),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, turns("q", "a")),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system": "s"},
         ["system: s", *turns("q", "a")]),
        ({"instruction": "do", "input": "it", "output": "done"}, turns("do\n\nit", "done")),
        ({"instruction": "do", "input": "", "output": "done"}, turns("do", "done")),
        ({"instruction": "do", "input": None, "response": "done"}, turns("do", "done")),
        ({"instruction": "do", "output": "done", "system": "s"}, ["system: s", *turns("do", "done")]),
        ({"prompt": "q", "completion": "a"}, turns("q", "a")),
        ({"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, turns("q", "a")),
        ({"messages": None, "prompt": "q", "completion": "a"}, turns("q", "a")),
    ],
)  # fmt: skip
def test_forms(record, expected):
    assert said(record) == expected


def test_what_follows_the_last_answer_is_counted():
    record = {"messages": [*MESSAGES, {"role": "user", "content": "and?"}, {"role": "user", "content": "hello?"}]}
    assert dialogue_of(record)[1] == 2
    assert said(record) == turns("q", "a")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "t"}, "no known form"),
        ({"instruction": "do", "input": "it"}, "no known form"),
        ({"messages": "q"}, "messages is str, not a list"),
        ({"messages": []}, "no answer"),
        ({"messages": MESSAGES[:1]}, "no answer"),
        ({"messages": [MESSAGES[0], {"role": "assistant"}]}, "messages: a turn without strings role and content"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": ["a"]}]}, "a turn without strings"),
        ({"messages": ["q", "a"]}, "a turn without strings"),
        ({"messages": [MESSAGES[0], {"role": "assistant", "content": " \n"}]}, "an answer is empty"),
        ({"instruction": "", "input": "", "output": "a"}, "a request is empty"),
        ({"instruction": 3, "output": "a"}, "instruction is int, not a string"),
        ({"prompt": "q", "completion": 7}, "completion is int, not a list"),
        ({"conversations": [{"from": "human", "text": "q"}]}, "a turn without strings from and value"),
    ],
)
def test_reasons(record, reason):
    with pytest.raises(DialogueError, match=reason):
        dialogue_of(record)


def records(scheme, path, limit=1000):
    skips = Skips()
    return [
        (record.place.rpartition("/")[2], record.fields) for record in read_records(scheme, str(path), limit, skips)
    ], skips


def test_lines_are_read_and_bad_ones_counted(tmp_path):
    lines = [b'{"a": 1}', b"{", b"[1]", b"", b'{"b": "\xff"}', b'{"c": "' + b"x" * 2000 + b'"}', b'{"d": 2}']
    path = tmp_path / "mixed.jsonl"
    path.write_bytes(b"\n".join(lines))
    found, skips = records("jsonl", path)
    assert found == [("mixed.jsonl:1", {"a": 1}), ("mixed.jsonl:7", {"d": 2})]
    reasons = {"malformed JSON": 1, "no JSON object": 1, "invalid UTF-8": 1, "over max_document_bytes": 1}
    assert skips.counts == reasons
    assert skips.examples["malformed JSON"] == f"{path}:2"
    packed = tmp_path / "mixed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert [fields for _, fields in records("jsonl", packed)[0]] == [{"a": 1}, {"d": 2}]


def test_tables_are_read(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "table.parquet"
    rows = [{"messages": MESSAGES, "prompt": None}, {"messages": None, "prompt": "q"}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    found, skips = records("parquet", path)
    assert [fields for _, fields in found] == rows
    assert [place for place, _ in found] == ["table.parquet:1", "table.parquet:2"]
    assert not skips.counts
    path.write_bytes(path.read_bytes()[:-20])
    assert records("parquet", path)[1].counts == {"truncated or corrupted Parquet": 1}


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "table.parquet"
    rows = [{"prompt": hashlib.sha256(str(number).encode()).hexdigest(), "completion": "a"} for number in range(300)]
    table = pyarrow.Table.from_pylist(rows)
    parquet.write_table(table, path, row_group_size=100, use_dictionary=False, compression="zstd")
    column = parquet.ParquetFile(path).metadata.row_group(1).column(0)
    content = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle - 500 : middle + 500] = b"\0" * 1000
    path.write_bytes(content)
    found, skips = records("parquet", path)
    assert [fields for _, fields in found] == rows[:100] + rows[200:]
    assert found[-1][0] == "table.parquet:300"
    assert skips.counts == {"truncated or corrupted Parquet": 100}
