import gzip
import json
import tracemalloc

import pytest

from hcxjax.data.readers import Skips, find_files, find_jsonl, read_files, read_jsonl

LIMIT = 100_000


def read(path, limit=LIMIT):
    skips = Skips()
    return list(read_jsonl([str(path)], "text", limit, skips)), skips


def write_lines(path, *lines):
    path.write_bytes(
        b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines) + b"\n"
    )
    return path


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut off', "malformed JSON"),
        (b"[" * 100_000, "malformed JSON"),
        (b'{"text": "\xff\xfe"}', "invalid UTF-8"),
        ({"body": "x"}, "no field 'text'"),
        (["text"], "no field 'text'"),
        ({"text": None}, "text is null"),
        ({"text": 5}, "text is int, not a string"),
        ({"text": " \n\t"}, "empty text"),
        (b'{"text": "\\ud800"}', "lone surrogate"),
        ({"text": "가" * 40_000}, "over max_document_bytes"),
    ],
)
def test_bad_lines_are_counted_by_reason_and_place(tmp_path, line, reason):
    path = write_lines(tmp_path / "a.jsonl", {"text": "first"}, line, {"text": "last"}, line)
    texts, skips = read(path)
    assert texts == ["first", "last"]
    assert skips.counts == {reason: 2}
    assert skips.examples == {reason: f"{path}:2"}


def test_a_line_of_ten_megabytes_is_passed_over_in_bounded_memory(tmp_path):
    path = write_lines(tmp_path / "a.jsonl", {"text": "x" * 10_000_000}, {"text": "after"})
    tracemalloc.start()
    texts, skips = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts == ["after"]
    assert skips.counts == {"over max_document_bytes": 1}
    assert peak < 2_000_000


def test_blank_lines_and_a_byte_order_mark_are_no_records(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\r\n\r\n  \n{"text": "two"}')
    assert read(path) == (["one", "two"], Skips())


def test_truncated_and_corrupted_gzip_gives_what_is_whole(tmp_path):
    lines = b"\n".join(json.dumps({"text": f"document {number} {hash(number)}"}).encode() for number in range(2000))
    path = tmp_path / "a.jsonl.gz"
    whole = gzip.compress(lines)
    path.write_bytes(whole[: len(whole) // 2])
    texts, skips = read(path)
    assert 100 < len(texts) < 2000
    assert skips.counts == {"truncated or corrupted gzip": 1}
    path.write_bytes(b"no gzip at all")
    assert read(path)[1].counts["truncated or corrupted gzip"] == 1


def test_an_empty_file_is_counted(tmp_path):
    (tmp_path / "a.jsonl").touch()
    assert read(tmp_path / "a.jsonl")[1].counts == {"empty file": 1}


def test_files_that_are_no_document_are_counted(tmp_path):
    for name, content in {
        "a.txt": "하나".encode(),
        "b.txt": b"\xff",
        "c.txt": b"",
        "d.txt": b"x" * (LIMIT + 1),
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "e.txt").symlink_to(tmp_path / "nowhere")
    skips = Skips()
    paths = [str(path) for path in sorted(tmp_path.iterdir())]
    assert list(read_files(paths, LIMIT, skips)) == ["하나"]
    assert skips.counts == {
        "invalid UTF-8": 1,
        "empty text": 1,
        "over max_document_bytes": 1,
        "unreadable: No such file or directory": 1,
    }


def test_files_are_found_by_extension_outside_hidden_folders(tmp_path):
    for name in ("a.py", "b.txt", "deep/er/c.py", ".git/d.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    found = find_files(str(tmp_path), ("py",))
    assert sorted(found) == [str(tmp_path / "a.py"), str(tmp_path / "deep/er/c.py")]


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"nothing\*.jsonl.*Corpus.sources"):
        find_jsonl(str(tmp_path / "nothing*.jsonl"))
    with pytest.raises(ValueError, match=r"absent.*does not exist"):
        find_files(str(tmp_path / "absent"), ("py",))
    with pytest.raises(ValueError, match=r"ends in .py"):
        find_files(str(tmp_path), ("py",))
