import gzip
import hashlib
import json
import tracemalloc

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from hcxjax.data.readers import Skips, find_files, find_matching, read_files, read_jsonl, read_parquet

LIMIT = 100_000


def read(path, limit=LIMIT):
    skips = Skips()
    reader = read_parquet if str(path).endswith(".parquet") else read_jsonl
    return list(reader(str(path), "text", limit, skips)), skips


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


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
def test_a_line_of_ten_megabytes_is_passed_over_in_bounded_memory(tmp_path, ending):
    content = json.dumps({"text": "x" * 10_000_000}).encode() + b'\n{"text": "after"}'
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(content))
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


def noisy_lines(count):
    """Lines that compress badly, so that a cut falls between them."""
    return b"\n".join(
        json.dumps({"text": hashlib.sha256(str(number).encode()).hexdigest()}).encode() for number in range(count)
    )


@pytest.mark.parametrize(
    ("kind", "compress"),
    [
        ("gzip", gzip.compress),
        ("zstd", zstandard.compress),
        ("zstd", zstandard.ZstdCompressor(write_checksum=True).compress),
    ],
)
def test_truncated_and_corrupted_files_give_what_is_whole(tmp_path, kind, compress):
    lines = noisy_lines(6_000)
    path = tmp_path / f"a.jsonl.{'gz' if kind == 'gzip' else 'zst'}"
    whole = compress(lines)
    damages = {f"truncated or corrupted {kind}": 1}
    path.write_bytes(whole[: len(whole) // 2])
    texts, skips = read(path)
    assert 1_000 < len(texts) < 5_000
    assert skips.counts == damages
    assert skips.examples == {f"truncated or corrupted {kind}": f"{path}:{len(texts) + 1}"}
    path.write_bytes(whole[:-1])
    assert read(path)[1].counts == damages
    path.write_bytes(b"neither gzip nor zstd")
    assert read(path) == ([], Skips(damages, {f"truncated or corrupted {kind}": f"{path}:1"}))
    path.write_bytes(whole)
    assert len(read(path)[0]) == 6_000


def test_zstd_of_several_frames_is_read_to_its_end(tmp_path):
    """pzstd and cat write frame after frame, some to be skipped; a run of equal bytes is a block of its own kind."""
    lines = noisy_lines(3_000) + b"\n" + b" " * 400_000 + b"\n"
    streamed = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    skippable = b"\x5a\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"note"
    frames = [zstandard.compress(lines), skippable, streamed.compress(lines) + streamed.flush(), skippable]
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(b"".join(frames))
    texts, skips = read(path, limit=1_000_000)
    assert len(texts) == 6_000
    assert not skips.counts


def write_parquet(path, values, kind=None, **options):
    parquet.write_table(pyarrow.table({"id": range(len(values)), "text": pyarrow.array(values, kind)}), path, **options)
    return path


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\xff", "invalid UTF-8"),
        (None, "text is null"),
        (b" \n", "empty text"),
        ("가".encode() * 40_000, "over max_document_bytes"),
    ],
)
def test_bad_rows_are_counted_by_reason_and_place(tmp_path, value, reason):
    path = write_parquet(tmp_path / "a.parquet", [b"first", value, b"last", value], row_group_size=3)
    texts, skips = read(path)
    assert texts == ["first", "last"]
    assert skips.counts == {reason: 2}
    assert skips.examples == {reason: f"{path}:2"}


@pytest.mark.parametrize(
    "kind",
    [pyarrow.string(), pyarrow.large_string(), pyarrow.binary(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())],
)
def test_columns_of_text_are_read_whatever_their_type(tmp_path, kind):
    texts = [f"문서 {number}" for number in range(200)]
    path = write_parquet(
        tmp_path / "a.parquet", [text.encode() if kind == pyarrow.binary() else text for text in texts], kind
    )
    assert read(path) == (texts, Skips())


@pytest.mark.parametrize("kind", ["string", "large_string"])
def test_a_column_of_strings_may_hold_what_is_no_utf8(tmp_path, kind):
    """Parquet writers do not look."""
    values = [b"fine", b"\xff", b"too"]
    column = pyarrow.array(values, pyarrow.large_binary() if kind == "large_string" else pyarrow.binary())
    column = column.view(pyarrow.large_string() if kind == "large_string" else pyarrow.string())
    parquet.write_table(pyarrow.table({"text": column}), tmp_path / "a.parquet")
    texts, skips = read(tmp_path / "a.parquet")
    assert texts == ["fine", "too"]
    assert skips.counts == {"invalid UTF-8": 1}


def test_a_column_that_is_no_text_or_absent_is_counted_row_by_row(tmp_path):
    assert read(write_parquet(tmp_path / "a.parquet", [1, 2]))[1].counts == {"text is int, not a string": 2}
    path = tmp_path / "b.parquet"
    parquet.write_table(pyarrow.table({"body": ["x"] * 5}), path)
    assert read(path)[1] == Skips({"no field 'text'": 5}, {"no field 'text'": f"{path}:1"})


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path):
    texts = [hashlib.sha256(str(number).encode()).hexdigest() for number in range(300)]
    path = write_parquet(tmp_path / "a.parquet", texts, row_group_size=100, use_dictionary=False, compression="zstd")
    column = parquet.ParquetFile(path).metadata.row_group(1).column(1)
    content = bytearray(path.read_bytes())
    middle = column.data_page_offset + column.total_compressed_size // 2
    content[middle - 500 : middle + 500] = b"\0" * 1000
    path.write_bytes(content)
    found, skips = read(path)
    assert found == texts[:100] + texts[200:]
    assert skips == Skips({"truncated or corrupted Parquet": 100}, {"truncated or corrupted Parquet": f"{path}:101"})


def test_a_parquet_file_without_its_end_is_counted(tmp_path):
    path = write_parquet(tmp_path / "a.parquet", ["x"] * 10)
    path.write_bytes(path.read_bytes()[:-5])
    assert read(path) == (
        [],
        Skips({"truncated or corrupted Parquet": 1}, {"truncated or corrupted Parquet": str(path)}),
    )
    assert read(write_parquet(path, []))[1].counts == {"empty file": 1}
    path.write_bytes(b"")
    assert read(path)[1].counts == {"empty file": 1}
    path.unlink()
    assert read(path)[1].counts == {"unreadable: No such file or directory": 1}


def test_a_parquet_file_is_read_in_bounded_memory(tmp_path):
    path = write_parquet(
        tmp_path / "a.parquet", ["x" * 10_000] * 4_000, row_group_size=200, use_dictionary=False, compression="zstd"
    )
    pyarrow.default_memory_pool().release_unused()
    before, most = pyarrow.total_allocated_bytes(), 0
    for _ in read_parquet(str(path), "text", LIMIT, Skips()):
        most = max(most, pyarrow.total_allocated_bytes() - before)
    assert 0 < most < 12_000_000  # of 40 MB


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


def test_data_is_found_by_path_folder_and_glob(tmp_path):
    for name in ("b.jsonl", "a.jsonl.zst", "notes.txt", "deep/c.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    endings = (".jsonl", ".jsonl.gz", ".jsonl.zst")
    folder = [str(tmp_path / name) for name in ("a.jsonl.zst", "b.jsonl", "deep/c.jsonl.gz")]
    assert find_matching(str(tmp_path), endings) == folder
    assert find_matching(f"{tmp_path}/*.jsonl*", endings) == folder[:2]
    assert find_matching(str(tmp_path / "notes.txt"), endings) == [str(tmp_path / "notes.txt")]


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no .jsonl or .jsonl.gz file matches '.*nothing\*.jsonl'.*Corpus.sources"):
        find_matching(str(tmp_path / "nothing*.jsonl"), (".jsonl", ".jsonl.gz"))
    with pytest.raises(ValueError, match=r"absent.*does not exist"):
        find_files(str(tmp_path / "absent"), ("py",))
    with pytest.raises(ValueError, match=r"ends in .py"):
        find_files(str(tmp_path), ("py",))
