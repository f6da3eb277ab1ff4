"""Reading, cleaning, dropping duplicates and tokenising in parts: the same bytes however the work is divided."""

import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest

from hcxjax.data.beam import Beam
from hcxjax.data.cleaning.duplicates import NearDuplicates
from hcxjax.data.cleaning.personal import PersonalData
from hcxjax.data.cleaning.quality import Length
from hcxjax.data.cleaning.steps import Outcome
from hcxjax.data.cleaning.wordlists import Classified
from hcxjax.data.corpus import Corpus
from hcxjax.data.documents import Unit, document_id
from hcxjax.data.engine import Local
from hcxjax.data.hashing import drawn, mixed
from hcxjax.data.packed import PackedTokens
from hcxjax.data.tokenizer import Tokenizer
from hcxjax.mesh import Layout
from hcxjax.world import World


@dataclasses.dataclass(frozen=True)
class Masked:
    """Drops what holds one word and changes another."""

    word: str = "dropped"

    def __call__(self, text):
        if self.word in text:
            return Outcome(text, "holds the word")
        return Outcome(text.replace("secret", "*"), None, {"secret": text.count("secret")} if "secret" in text else {})


KOREAN = list(World().documents("ko", count=60))
ENGLISH = list(World().documents("en", count=40))
NEAR = NearDuplicates(permutations=60, bands=10)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Three Korean files and an English one with planted duplicates, words and broken lines."""
    folder = tmp_path_factory.mktemp("files")
    copies = [KOREAN[3], KOREAN[10] + " 끝.", "dropped " + KOREAN[4], "a secret and a secret"]
    # Short ones, which have no signature, and variants, of which each pair meets in other bands.
    copies += ["짧은 글", "짧은 글", KOREAN[12] + " 하나.", KOREAN[12] + " 하나. 그리고 둘."]
    parts = {"ko-0": KOREAN[:25], "ko-1": KOREAN[25:45] + copies, "ko-2": [*KOREAN[45:], KOREAN[50]]}
    parts["en-0"] = [*ENGLISH, KOREAN[50], ENGLISH[7]]
    for name, texts in parts.items():
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in texts]
        (folder / f"{name}.jsonl").write_text("\n".join([*lines, "{broken"]), encoding="utf-8")
    return folder


@pytest.fixture
def prepared(files, model_path, tmp_path):
    def build(name="corpus", **changes):
        settings = {
            "sources": {"ko": f"jsonl:{files}/ko-*.jsonl", "en": f"jsonl:{files}/en-*.jsonl"},
            "tokenizer": Tokenizer(size=420, path=model_path),
            "directory": str(tmp_path / name),
            "validation_share": 0.2,
            "cleaning": {"ko": (Masked(),)},
            "duplicates": NEAR,
        }
        return Corpus(**(settings | changes))

    return build


def contents(folder) -> dict[str, bytes]:
    """Every file of a prepared corpus but the locks."""
    return {
        os.path.relpath(os.path.join(place, name), folder): open(os.path.join(place, name), "rb").read()
        for place, _, names in os.walk(folder)
        for name in names
        if not name.endswith(".lock")
    }


def texts_of(corpus, source, vocabulary):
    stores = [corpus.stores(split)[source] for split in ("train", "validation")]
    return [vocabulary.decode(store.tokens(document)) for store in stores for document in range(len(store))]


def test_what_is_dropped_and_changed_is_gone_and_counted(prepared, vocabulary):
    corpus = prepared()
    korean, english = texts_of(corpus, "ko", vocabulary), texts_of(corpus, "en", vocabulary)
    assert "a * and a *" in korean
    # English comes first by name, so the Korean documents that equal one of its lines go.
    expected = [*KOREAN, "a * and a *", "짧은 글"]
    expected.remove(KOREAN[50])
    assert sorted(korean) == sorted(expected)
    assert sorted(english) == sorted([*ENGLISH, KOREAN[50]])
    tally = corpus.stores("train")["ko"].manifest["tally"]
    assert tally["documents"] == 69 + 3
    assert tally["kept"] == len(korean)
    assert tally["changed"] == {"secret": 2}
    dropped = {"holds the word": 1, "malformed JSON": 3, "exact duplicate": 4, "near-duplicate": 3}
    assert tally["dropped"] == dropped
    assert tally["documents"] == tally["kept"] + sum(dropped.values())
    assert corpus.stores("train")["en"].manifest["tally"]["dropped"] == {"exact duplicate": 1, "malformed JSON": 1}


def test_documents_are_in_the_order_of_reading(prepared):
    documents = prepared().documents
    assert documents.units() == [Unit("en", "train"), Unit("ko", "train")]
    assert [documents.parts(unit) for unit in documents.units()] == [1, 3]
    assert document_id(0, 2, 5) < document_id(0, 2, 6) < document_id(0, 3, 0) < document_id(1, 0, 0) < 1 << 63


@pytest.mark.parametrize(
    "engine",
    [
        Local(3),
        Beam(("--direct_num_workers=1", "--direct_running_mode=in_memory")),
        Beam(("--direct_num_workers=3", "--direct_running_mode=multi_threading")),
        pytest.param(Beam(), marks=pytest.mark.slow),
    ],
    ids=["processes", "beam", "beam-threads", "beam-processes"],
)
def test_any_engine_writes_the_same_bytes_as_one_process(prepared, engine):
    steps = {"ko": (Length(least=1), PersonalData())}  # nothing of this module, which takes seconds to import
    corpora = prepared("one", cleaning=steps), prepared("other", cleaning=steps, engine=engine)
    for corpus in corpora:
        corpus.stores("train"), corpus.stores("validation")
    one, other = (contents(corpus.directory) for corpus in corpora)
    assert one == other
    assert sum(name.startswith("store") for name in one) > 10
    packed = [PackedTokens(corpus, length=64, batch=8) for corpus in corpora]
    for source in packed:
        source.start(Layout(), None)
    first, second = (source.rows(0, 40) for source in packed)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    for source in packed:
        source.close()


def test_two_commands_at_once_write_one_corpus(prepared):
    prepared("one").stores("train")
    errors = []

    def write():
        try:
            prepared("shared").stores("train")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert contents(prepared("one").directory) == contents(prepared("shared").directory)


PREPARE = """
import sys
from hcxjax.data import documents
from hcxjax.data.corpus import Corpus
from hcxjax.data.tokenizer import Tokenizer

def stalled(steps, text, clean=documents.clean):
    if text == sys.argv[4]:
        print("under way", flush=True)
        sys.stdin.read()
    return clean(steps, text)

documents.clean = stalled
Corpus({"ko": sys.argv[1]}, Tokenizer(size=420, path=sys.argv[2]), sys.argv[3], validation_share=0.2).stores("train")
"""


def test_killed_while_cleaning_it_goes_on_where_it_was(prepared, files, model_path, tmp_path):
    corpus = prepared("cut", sources={"ko": f"jsonl:{files}/ko-*.jsonl"}, cleaning=None, duplicates=None)
    arguments = [corpus.sources["ko"], model_path, corpus.directory, KOREAN[30]]  # in the second file
    command = [sys.executable, "-c", PREPARE, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout.readline() == b"under way\n"
        process.send_signal(signal.SIGKILL)
    unit = corpus.documents.units()[0]
    first, second = (corpus.documents.part_folder(unit, part) for part in range(2))
    assert os.path.isdir(first) and not os.path.exists(second)
    written = os.stat(os.path.join(first, "texts.array_record")).st_mtime_ns
    corpus.stores("train")
    assert os.stat(os.path.join(first, "texts.array_record")).st_mtime_ns == written
    whole = dataclasses.replace(corpus, directory=str(tmp_path / "whole"))
    whole.stores("train")
    assert contents(corpus.directory) == contents(whole.directory)


FULL = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
from hcxjax.data.corpus import Corpus
from hcxjax.data.tokenizer import Tokenizer
Corpus({"ko": sys.argv[1]}, Tokenizer(size=420, path=sys.argv[2]), sys.argv[3], validation_share=0.2).stores("train")
"""


def test_a_full_disk_is_an_error_that_leaves_the_earlier_state(prepared, files, model_path):
    corpus = prepared(sources={"ko": f"jsonl:{files}/ko-*.jsonl"}, cleaning=None, duplicates=None)
    unit = corpus.documents.units()[0]
    corpus.documents.clean_part(unit, 0)
    before = contents(corpus.directory)
    command = [sys.executable, "-c", FULL, corpus.sources["ko"], model_path, corpus.directory]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode
    assert "File too large" in process.stderr or "full" in process.stderr
    assert contents(corpus.directory) == before
    assert len(corpus.stores("train")["ko"]) > 40


def test_files_that_come_later_are_not_taken_for_others(model_path, tmp_path, caplog, vocabulary):
    def write(name, text):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": f"{text} {n}"}) + "\n" for n in range(9)))

    write("b", "bee")
    write("c", "sea")
    source = {"x": f"jsonl:{tmp_path}/*.jsonl"}
    corpus = Corpus(source, Tokenizer(size=420, path=model_path), str(tmp_path / "run"), validation_share=1e-9)
    unit = Unit("x", "train")
    corpus.documents.clean_part(unit, 0)
    write("a", "eh")  # comes first in the order of names
    with pytest.raises(ValueError, match=r"part 1 was c.jsonl. Delete .*documents/x-\* to read them anew"):
        corpus.documents.clean_part(unit, 1)
    (tmp_path / "a.jsonl").unlink()
    store = corpus.stores("train")["x"]
    write("a", "eh")
    again = corpus.stores("train")["x"]
    texts = [vocabulary.decode(again.tokens(document)) for document in range(len(again))]
    assert texts == [f"{word} {n}" for word in ("bee", "sea") for n in range(9)]
    assert again.fingerprint == store.fingerprint
    assert "files of source x" in caplog.text


def test_parts_take_turns_in_the_sample(prepared, monkeypatch):
    monkeypatch.setattr("hcxjax.data.documents._ROUND", 10)
    documents = prepared(cleaning=None, duplicates=None, validation_share=1e-9).documents
    documents.prepare(Local())
    texts = list(documents.training_texts("ko"))
    assert texts[:35] == [*KOREAN[:10], *KOREAN[25:35], *KOREAN[45:55], *KOREAN[10:15]]
    assert len(texts) == 69
    assert sorted(set(texts)) == sorted(set(documents.training_texts("ko")))


def test_limits_are_dealt_over_files(prepared):
    corpus = prepared(max_documents=7, max_validation_documents=3, cleaning=None, duplicates=None)
    assert len(corpus.stores("train")["ko"]) == 7
    assert 0 < len(corpus.stores("validation")["ko"]) <= 3
    assert [part["documents"] for part in corpus.stores("train")["ko"].manifest["parts"].values()] == [3, 2, 2]
    assert len(corpus.stores("train")["en"]) == 7


def test_what_is_held_out_beyond_the_limit_is_counted(prepared):
    corpus = prepared(max_validation_documents=3, cleaning=None, duplicates=None, validation_share=0.5)
    assert len(corpus.stores("validation")["ko"]) == 3  # one a file
    train = corpus.stores("train")["ko"]
    beyond = train.manifest["tally"]["dropped"]["held out beyond Corpus.max_validation_documents"]
    assert beyond > 10
    assert train.manifest["tally"]["documents"] == len(train) + 3 + beyond + 3  # three broken lines


def test_other_cleaning_is_another_corpus(prepared):
    plain, cleaned = prepared(cleaning=None), prepared()
    assert plain.documents.key("ko") != cleaned.documents.key("ko")
    assert plain.documents.key("en") == cleaned.documents.key("en")
    other = prepared(cleaning={"ko": (Masked("another"),)})
    assert other.documents.key("ko") != cleaned.documents.key("ko")
    assert prepared(duplicates=None).documents.keys != cleaned.documents.keys


def test_a_tokenizer_that_changes_meanwhile_is_noticed(prepared, model_path):
    corpus = prepared()
    documents = corpus.documents
    documents.prepare(corpus.engine)
    with pytest.raises(ValueError, match=r"tokenizer .*model was changed while the corpus was being tokenised"):
        corpus.tokenize_part(documents, (model_path, "of an earlier file"), documents.units()[0], 0)


def test_a_classifier_is_known_by_its_name(prepared):
    def key(classifier, threshold=0.5):
        return prepared(cleaning={"ko": (Classified(classifier, threshold, "poor"),)}).documents.key("ko")

    assert key(mixed) == key(mixed) != key(mixed, 0.6)
    assert key(mixed) != key(drawn)
    script = (
        "from hcxjax.data.cleaning.wordlists import Classified\n"
        "from hcxjax.data.corpus import Corpus\n"
        "from hcxjax.data.hashing import mixed\n"
        "cleaning = {'ko': (Classified(mixed, 0.5, 'poor'),)}\n"
        "print(Corpus({'ko': 'jsonl:x'}, None, '', cleaning=cleaning).documents.key('ko'))"
    )
    with pytest.raises(ValueError, match=r"Classified holds functools.partial.* at 0x"):
        key(functools.partial(mixed))  # of a function: its repr has an address
    one, two = (subprocess.check_output([sys.executable, "-c", script], text=True) for _ in range(2))
    assert one == two


def test_beam_is_asked_for_by_name_where_it_is_missing(prepared, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(ValueError, match=r"Corpus.engine is Beam, but apache-beam is missing: pip install"):
        prepared(engine=Beam()).stores("train")
