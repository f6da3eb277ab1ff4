"""Overlap with evaluation sets: which files are read, which windows count, and that counts are those of plain sets."""

import csv
import gzip
import io
import json
import tarfile

import pytest

from hcxjax.data.cleaning.evaluation_sets import evaluation_fields
from hcxjax.data.cleaning.overlap import BenchmarkOverlap

KOREAN = "다음 가운데 강가의 시장에서 도넛 여덟 개를 산 사람이 이웃에게 나누어 준 도넛의 수로 알맞은 것을 고르시오."
ENGLISH = "Which of the following best explains why the merchant near the river sold fewer donuts on rainy days?"
OTHER = "A long passage that is not to be read because it was taken from an encyclopedia that everyone has."


@pytest.fixture
def folder(tmp_path):
    rows = io.StringIO()
    csv.writer(rows).writerows([["question", "Passage"], [ENGLISH, OTHER]])
    with tarfile.open(tmp_path / "sets.tar.gz", "w:gz") as archive:
        for name, text in (("a/x.csv", rows.getvalue()), ("a/README.md", "not read"), ("a/._x.csv", "hidden")):
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress((json.dumps({"q": KOREAN, "more": [{"n": 1, "o": "짧다"}]}) + "\n").encode())
    )
    (tmp_path / "c.json").write_text(json.dumps([{"context": OTHER, "one": "json"}]))
    (tmp_path / "d.tsv").write_text('id\ttext\n1\tlone " quote\n2\tand more\n')
    (tmp_path / "e.txt").write_text("line one\nline two\n")
    (tmp_path / "LICENSE").write_text("not read")
    return str(tmp_path)


def test_strings_of_every_kind_of_file_are_read(folder):
    fields = list(evaluation_fields([folder], ["passage", "context"]))
    assert fields == [
        KOREAN,
        "짧다",
        "json",
        "id",
        "text",
        "1",
        'lone " quote',
        "2",
        "and more",
        "line one",
        "line two",
        "question",
        ENGLISH,
    ]
    assert OTHER in list(evaluation_fields([folder + "/c.json"]))


def test_paths_that_hold_nothing_are_refused(tmp_path):
    (tmp_path / "bad.json").write_text("{")
    for path, message in ((tmp_path / "no", "no evaluation set"), (tmp_path / "bad.json", "cannot be read")):
        with pytest.raises(ValueError, match=message):
            list(evaluation_fields([str(path)]))
    with pytest.raises(ValueError, match=r"BenchmarkOverlap.paths is 'bench'; it must be a tuple"):
        BenchmarkOverlap(paths="bench")


def test_copies_are_found_whatever_their_spacing_case_and_punctuation(folder):
    step = BenchmarkOverlap(paths=(folder,), min_words=3, min_characters=10)
    for copy in (
        KOREAN,
        KOREAN.replace(" ", ""),
        f"앞말 {KOREAN} 뒷말",
        ENGLISH.upper(),
        f"So: {ENGLISH.replace(' ', chr(10))}",
    ):
        assert step(copy).dropped == "benchmark overlap"
    for other in (OTHER, KOREAN[:34], ENGLISH[:60], "", "짧다", "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"):
        assert step(other).dropped is None
    assert BenchmarkOverlap()(KOREAN).dropped is None


def test_windows_are_those_of_plain_sets(folder):
    step = BenchmarkOverlap(paths=(folder,))
    letters = "".join(character for character in KOREAN if character.isalnum())
    assert step.windows_held(KOREAN) == (0, len({letters[at : at + 30] for at in range(len(letters) - 29)}))
    assert step.windows_held(f"{KOREAN} {KOREAN}")[1] == len(letters) - 29
    assert step.windows_held(ENGLISH) == (len(ENGLISH.split()) - 12, 0)
    assert step.windows_held(KOREAN[:20] + "x" + KOREAN[20:])[1] < len(letters) - 29


def test_contents_tell_sets_of_one_name_apart(tmp_path):
    found = {}
    for place, name, text in (("a", "e.txt", "x"), ("b", "e.txt", "x"), ("c", "e.txt", "y"), ("d", "f.txt", "x")):
        (tmp_path / place).mkdir()
        (tmp_path / place / name).write_text(text)
        (tmp_path / place / "LICENSE").write_text(place)
        found[place] = BenchmarkOverlap(paths=(str(tmp_path / place),)).contents()
    assert found["a"] == found["b"]
    assert len(set(found.values())) == 3
    assert BenchmarkOverlap().contents() == ""
    with pytest.raises(ValueError, match=r"no evaluation set at .*absent"):
        BenchmarkOverlap(paths=(str(tmp_path / "absent"),)).contents()


def test_no_window_spans_two_fields_or_is_made_of_numbers(tmp_path):
    numbers = " ".join(map(str, range(30)))
    (tmp_path / "e.txt").write_text("\n".join([*ENGLISH.split(), *KOREAN.split(), numbers]))
    step = BenchmarkOverlap(paths=(str(tmp_path),), min_words=1, min_characters=1)
    assert [step.windows_held(text) for text in (ENGLISH, KOREAN, numbers)] == [(0, 0)] * 3


@pytest.mark.parametrize("count", range(15))
def test_a_set_of_few_words_is_read(tmp_path, count):
    (tmp_path / "set.txt").write_text(" ".join(f"word{number}x" for number in range(count)), encoding="utf-8")
    step = BenchmarkOverlap((str(tmp_path / "set.txt"),), min_words=1)
    assert step.windows_held("something else altogether") == (0, 0)
    held, _ = step.windows_held(" ".join(f"word{number}x" for number in range(20)))
    assert held == max(0, count - 12)  # windows of 13
