import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from hcxjax.data.publishing import publish
from hcxjax.data.store import RECORD_TOKENS, TokenStore, part_folder, seal, sealed, write_part

TEXTS = ["안녕하세요, 여러분.", "plain\ttext\n", "▁", "x = [1, 2]\n" * 40]
ABOUT = {"source": "jsonl:a", "split": "train", "left_out": "1 x empty text (first: a.jsonl:3)"}


def write(store, texts_by_part, vocabulary):
    for part, texts in enumerate(texts_by_part):
        publish(part_folder(str(store), part), lambda folder, texts=texts: write_part(folder, texts, vocabulary))
    seal(str(store), range(len(texts_by_part)), vocabulary, ABOUT)
    return TokenStore.open(str(store))


@pytest.fixture
def folder(tmp_path, vocabulary):
    write(tmp_path / "store", [TEXTS[:3], [], TEXTS[3:]], vocabulary)
    return tmp_path / "store"


def test_documents_come_back_by_number(folder, vocabulary):
    store = TokenStore.open(str(folder))
    assert len(store) == 4
    assert [vocabulary.decode(store.tokens(document)) for document in (3, 0, 2, 1)] == [TEXTS[n] for n in (3, 0, 2, 1)]
    assert store.tokens(0).dtype == np.int32
    assert store.lengths.tolist() == [len(vocabulary.encode(text)) for text in TEXTS]
    assert store.byte_lengths.tolist() == [len(text.encode()) for text in TEXTS]


def test_a_part_of_a_long_document_is_read_alone(tmp_path, vocabulary):
    text = "0123456789" * (RECORD_TOKENS // 8)
    store = write(tmp_path / "store", [["a", text, "b"]], vocabulary)
    ids = vocabulary.encode(text)
    assert len(ids) > RECORD_TOKENS
    for start, stop in [(0, None), (5, 20), (RECORD_TOKENS - 3, RECORD_TOKENS + 4), (RECORD_TOKENS, None), (7, 7)]:
        assert store.tokens(1, start, stop).tolist() == ids[start:stop]
    assert vocabulary.decode(store.tokens(2)) == "b"


def test_the_manifest_says_what_was_written_and_what_was_not(folder, vocabulary):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["documents"] == 4
    assert manifest["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert manifest["left_out"] == "1 x empty text (first: a.jsonl:3)"
    assert manifest["tokenizer"] == vocabulary.fingerprint
    assert list(manifest["parts"]) == ["0", "2"]  # a part without documents is no part


def test_equal_documents_have_equal_fingerprints_and_bytes(folder, tmp_path, vocabulary):
    write(tmp_path / "again", [TEXTS[:3], [], TEXTS[3:]], vocabulary)
    write(tmp_path / "fewer", [TEXTS[:3]], vocabulary)
    first, again, fewer = (TokenStore.open(str(tmp_path / name)).fingerprint for name in ("store", "again", "fewer"))
    assert first == again != fewer
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    assert all((folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)


def test_a_store_without_its_manifest_is_not_complete(folder):
    assert sealed(str(folder))
    os.remove(folder / "manifest.json")
    assert not sealed(str(folder))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-5])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def read_all(folder):
    store = TokenStore.open(str(folder))
    store.verify()


@pytest.mark.parametrize("name", ["tokens.array_record", "index.npz"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [(truncate, r"bytes, expected \d+"), (flip, r"sha256 \w+, expected \w+"), (os.remove, "missing")],
)
def test_damage_is_named_with_the_folder_to_delete(folder, name, damage, message):
    damage(folder / "part-00002" / name)
    with pytest.raises(ValueError, match=rf"{name} is .*{message}.*; delete .*store to have it written anew"):
        read_all(folder)


def test_damaged_tokens_are_never_read(tmp_path, vocabulary):
    texts = [f"{number} {'가나다 ' * 50}" for number in range(40)]
    write(tmp_path / "store", [texts], vocabulary)
    path = tmp_path / "store" / "part-00000" / "tokens.array_record"
    content, refused = path.read_bytes(), 0
    for at in range(len(content) // 32, len(content), len(content) // 32):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            store = TokenStore.open(str(tmp_path / "store"))
            read = [vocabulary.decode(store.tokens(document)) for document in range(40)]
        except ValueError as error:
            assert "corrupted" in str(error) and "delete" in str(error)
            refused += 1
        else:
            assert read == texts  # the flipped byte is filling
    assert refused


@pytest.mark.parametrize("content", ["", "{}", '{"format": 99, "files": {}}', "[1]"])
def test_a_damaged_manifest_is_named(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"manifest.json .*delete .*store"):
        TokenStore.open(str(folder))


def test_no_document_at_all_is_an_error_that_says_what_was_left_out(tmp_path, vocabulary):
    with pytest.raises(ValueError, match=r"'jsonl:a' has no document in split 'train' \(1 x empty text"):
        write(tmp_path / "store", [[], []], vocabulary)
    assert not sealed(str(tmp_path / "store"))


WRITER = """
import os, sys
from hcxjax.data.publishing import publish
from hcxjax.data.store import write_part
from hcxjax.text.vocabulary import Vocabulary

def texts():
    for number in range(100_000):
        yield f"{number} {os.urandom(400).hex()}"
        if number == 300:
            print("under way", flush=True)

publish(sys.argv[1], lambda folder: write_part(folder, texts(), Vocabulary(sys.argv[2])))
"""


def test_killed_while_writing_the_next_start_writes_anew(tmp_path, model_path, vocabulary):
    part = part_folder(str(tmp_path), 0)
    command = [sys.executable, "-c", WRITER, part, model_path]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        assert writer.stdout.readline() == b"under way\n"
        writer.send_signal(signal.SIGKILL)
    assert not os.path.exists(part)
    with pytest.raises(ValueError, match=r"part-00000.*cannot be read"):
        seal(str(tmp_path), [0], vocabulary, ABOUT)
    assert len(write(tmp_path, [TEXTS], vocabulary)) == len(TEXTS)
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
