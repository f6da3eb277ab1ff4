import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from hcxjax.data.publishing import publish
from hcxjax.data.readers import Skips
from hcxjax.data.store import TokenStore, write_store

TEXTS = ["안녕하세요, 여러분.", "plain\ttext\n", "▁", "x = [1, 2]\n" * 40]


@pytest.fixture
def folder(tmp_path, vocabulary):
    skips = Skips()
    skips.add("empty text", "a.jsonl:3")
    publish(str(tmp_path / "store"), lambda place: write_store(place, TEXTS, vocabulary, skips, "jsonl:a", "train"))
    return tmp_path / "store"


def test_documents_come_back_by_number(folder, vocabulary):
    store = TokenStore.open(str(folder))
    assert len(store) == 4
    assert [vocabulary.decode(store.tokens(document)) for document in (3, 0, 2, 1)] == [TEXTS[n] for n in (3, 0, 2, 1)]
    assert store.tokens(0).dtype == np.int32
    assert store.lengths.tolist() == [len(vocabulary.encode(text)) for text in TEXTS]
    assert store.byte_lengths.tolist() == [len(text.encode()) for text in TEXTS]


def test_the_manifest_says_what_was_written_and_what_was_not(folder, vocabulary):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["documents"] == 4
    assert manifest["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert manifest["skipped"] == {"empty text": 1}
    assert manifest["skipped_first_at"] == {"empty text": "a.jsonl:3"}
    assert manifest["tokenizer"] == vocabulary.fingerprint


def test_equal_documents_have_equal_fingerprints(folder, tmp_path, vocabulary):
    publish(str(tmp_path / "again"), lambda place: write_store(place, TEXTS, vocabulary, Skips(), "other", "train"))
    publish(str(tmp_path / "fewer"), lambda place: write_store(place, TEXTS[1:], vocabulary, Skips(), "other", "train"))
    first, again, fewer = (TokenStore.open(str(tmp_path / name)).fingerprint for name in ("store", "again", "fewer"))
    assert first == again != fewer


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["tokens.array_record", "index.npz"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncate, r"bytes, expected \d+"), (flip, r"sha256 \w+, expected \w+"), (os.remove, "missing")],
)
def test_damage_is_named_with_the_folder_to_delete(folder, name, damage, message):
    damage(folder / name)
    with pytest.raises(ValueError, match=rf"{name} is .*{message}.*; delete .*store to have it written anew"):
        TokenStore.open(str(folder))


@pytest.mark.parametrize("content", ["", "{}", '{"format": 99, "files": {}}', "[1]"])
def test_a_damaged_manifest_is_named(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest.json .*delete .*store"):
        TokenStore.open(str(folder))


def test_no_document_at_all_is_an_error_that_says_what_was_skipped(tmp_path, vocabulary):
    skips = Skips()
    skips.add("malformed JSON", "a.jsonl:1")
    with pytest.raises(ValueError, match=r"'jsonl:a' has no document.*1 x malformed JSON \(first: a.jsonl:1\)"):
        publish(str(tmp_path / "store"), lambda place: write_store(place, [], vocabulary, skips, "jsonl:a", "train"))
    assert not (tmp_path / "store").exists()


WRITER = """
import os, sys
from hcxjax.data.publishing import publish
from hcxjax.data.readers import Skips
from hcxjax.data.store import write_store
from hcxjax.text.vocabulary import Vocabulary

def texts():
    for number in range(100_000):
        yield f"{number} {os.urandom(400).hex()}"
        if number == 300:
            print("under way", flush=True)

publish(sys.argv[1], lambda folder: write_store(folder, texts(), Vocabulary(sys.argv[2]), Skips(), "s", "train"))
"""


def test_killed_while_writing_the_next_start_writes_anew(tmp_path, model_path, vocabulary):
    store = tmp_path / "store"
    command = [sys.executable, "-c", WRITER, str(store), model_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout.readline() == b"under way\n"
        writer.send_signal(signal.SIGKILL)
    assert not store.exists()
    publish(str(store), lambda place: write_store(place, TEXTS, vocabulary, Skips(), "s", "train"))
    assert len(TokenStore.open(str(store))) == len(TEXTS)
    assert not list(tmp_path.glob("*.writing-*"))


SMALL_DISK = """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
"""


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, model_path):
    script = SMALL_DISK + WRITER.replace("100_000", "2000")
    command = [sys.executable, "-c", script, str(tmp_path / "store"), model_path]
    writer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert writer.returncode
    assert "File too large" in writer.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["store.lock"]
