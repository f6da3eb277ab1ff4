"""Files of prompts, in and out: every kind of line, a command that is stopped, and one that is changed."""

import json
from pathlib import Path

import pytest

from hcxjax.inference.engine import Engine
from hcxjax.models.config import DecoderConfig
from tests.tools.scripted import Scripted
from tools import generate, prompt_files

pytest.importorskip("tokenizers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tools.random_checkpoint import write_checkpoint

    path = tmp_path_factory.mktemp("files") / "tiny"
    write_checkpoint(path, DecoderConfig(300, 2, 32, 32, 2, 1, 16, 128), dtype="float32")
    return path


@pytest.fixture
def work(folder, tmp_path, capsys):
    """(lines, arguments) → (exit code, records of the output by index, stderr); None is the lines of before."""

    def run(lines, *arguments: str, output: str = "out.jsonl"):
        if lines is not None:
            encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
            (tmp_path / "in.jsonl").write_bytes(b"".join(line + b"\n" for line in encoded))
        files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / output)]
        code = generate.main(["--model", str(folder), *files, "--new_tokens", "6", *arguments])
        written = tmp_path / output
        records = [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []
        assert len({record["index"] for record in records}) == len(records), "a line was written twice"
        return code, {record["index"]: record for record in records}, capsys.readouterr().err

    return run


MIXED = [
    {"prompt": "나는 ", "id": "first"},
    {"prompt": "x = ", "suffix": "\n", "id": 7},
    {"messages": [{"role": "user", "content": "안녕"}], "seed": 5, "temperature": 1.0},
    b"",
    {"prompt": "a", "new_tokens": 2, "top_k": 1},
    {"prompt": "끝", "stop": list(range(97, 112)), "stop_text": ["abc"]},
]


def test_lines_of_every_kind(work):
    code, records, _ = work(MIXED, "--samples", "2")
    assert code == 0
    assert sorted(records) == [0, 1, 2, 4, 5]
    for index, record in records.items():
        given = MIXED[index]
        assert {key: record.get(key) for key in ("id", "prompt", "suffix", "messages")} == {
            key: given.get(key) for key in ("id", "prompt", "suffix", "messages")
        }
        assert len(record["texts"]) == len(record["finish"]) == len(record["tokens"]) == 2
        assert set(record["finish"]) <= {"stop", "length"}
    assert records[4]["tokens"] == [2, 2]
    assert records[4]["texts"][0] == records[4]["texts"][1]  # top_k of 1 leaves no choice
    assert records[0]["texts"][0] != records[0]["texts"][1]
    assert records[0]["prompt_tokens"] == 1 + len("나는 ".encode())
    assert records[1]["prompt_tokens"] == 1 + 3 + len("x = \n")


def test_a_line_has_its_text_whatever_else_is_written(work):
    lines = [{"prompt": letter} for letter in "abcdefgh"]
    _, many, _ = work(lines, output="many.jsonl")
    _, one, _ = work(lines, "--slots", "2", output="one.jsonl")
    _, alone, _ = work([*[b""] * 6, lines[6]], output="alone.jsonl")
    assert one == many
    assert alone == {6: many[6]}
    _, other, _ = work(lines, "--seed", "1", output="other.jsonl")
    assert all(other[index]["texts"] != many[index]["texts"] for index in many)


def test_every_line_and_sample_has_draws_of_its_own(work, monkeypatch):
    submit, streams = Engine.submit, []
    monkeypatch.setattr(Engine, "submit", lambda engine, given: streams.append(given.stream) or submit(engine, given))
    _, records, _ = work([{"prompt": "a", "temperature": 1.0}] * 3, "--samples", "2")
    assert streams == [0, 2, 4]
    assert len({text for record in records.values() for text in record["texts"]}) == 6


USELESS = [
    (b"{", "line 1: "),
    (b"[1]", "is no object"),
    (b"\xff\xfe{", "line 1: "),
    (b'{"prompt": "\\ud800"}', "lone surrogate"),
    (b'{"prompt": "a", "temperature": NaN}', "NaN is no JSON"),
    (b"[" * 100_000, "line 1: "),
    ({}, "either prompt or messages"),
    ({"prompt": "a", "messages": []}, "either prompt or messages"),
    ({"prompt": 1}, "prompt is 1"),
    ({"prompt": "a", "suffix": 1}, "suffix is 1"),
    ({"messages": [{"role": "user", "content": "a"}], "suffix": "b"}, "suffix goes with prompt"),
    ({"messages": []}, "this one is empty"),
    ({"messages": [{"role": "bot", "content": "a"}]}, "message 0 has the role 'bot'"),
    ({"prompt": "a", "temprature": 1}, "did you mean 'temperature'?"),
    ({"prompt": "a", "temperature": "hot"}, "temperature is 'hot'"),
    ({"prompt": "a", "top_p": 2}, "top_p is 2"),
    ({"prompt": "a", "new_tokens": 0}, "new_tokens is 0"),
    ({"prompt": "a", "stop": "b"}, "stop is 'b'; it must be a list of ids"),
    ({"prompt": "a", "stop_text": [""]}, "stop"),
    ({"prompt": "a" * 300}, "the model's context is 128"),
]


def test_lines_that_cannot_be_used_stop_nothing(work):
    code, records, errors = work([*[line for line, _ in USELESS], {"prompt": "good"}])
    assert code == 0
    assert sorted(records) == list(range(len(USELESS) + 1))
    for index, (_, message) in enumerate(USELESS):
        assert records[index].keys() == {"index", "error"}
        assert message.removeprefix("line 1: ") in records[index]["error"]
    assert records[len(USELESS)]["texts"]
    assert f"{len(USELESS)} lines could not be used" in errors
    assert "line 2: [1] is no object" in errors
    assert f"and {len(USELESS) - 5} more" in errors


def test_strict_stops_at_the_first(work):
    code, records, errors = work([{"prompt": "a"}, b"{", {"prompt": "b"}], "--strict")
    assert code == 1
    assert "generate: line 2: " in errors
    assert 1 not in records


def test_a_stopped_command_goes_on_where_it_was(work, tmp_path, monkeypatch):
    lines = [{"prompt": letter} for letter in "abcdefgh"]
    _, whole, _ = work(lines, output="whole.jsonl")
    advance, rounds = Engine.advance, iter(range(100))

    def interrupted(engine):
        if next(rounds) == 6:
            raise KeyboardInterrupt
        return advance(engine)

    monkeypatch.setattr(Engine, "advance", interrupted)
    code, some, _ = work(lines, "--slots", "2")
    monkeypatch.undo()
    assert code == generate.INTERRUPTED
    assert 0 < len(some) < len(lines)
    out = tmp_path / "out.jsonl"
    out.write_bytes(out.read_bytes()[:-5])  # the machine went down inside a line
    done = out.read_bytes().rsplit(b"\n", 1)[0]
    submitted = []
    submit = Engine.submit
    monkeypatch.setattr(Engine, "submit", lambda *given: submitted.append(given) or submit(*given))
    code, records, _ = work(None)
    assert code == 0
    assert records == whole
    assert out.read_bytes().startswith(done)
    assert len(submitted) == len(lines) - len(some) + 1


def test_other_settings_or_another_input_are_refused(work, tmp_path):
    lines = [{"prompt": "a"}, {"prompt": "b"}]
    work(lines)
    out = tmp_path / "out.jsonl"
    before = out.read_bytes()
    code, _, errors = work(lines, "--temperature", "0.5", "--stop_text", "x")
    assert code == 1
    assert "stop_text was [] and is ['x']; temperature was 0.7 and is 0.5. Name another --output" in errors
    code, _, errors = work([{"prompt": "c"}, *lines])
    assert code == 1
    assert "has changed since" in errors
    (tmp_path / "out.jsonl.settings.json").unlink()
    code, _, errors = work(lines)
    assert code == 1
    assert "out.jsonl.settings.json is not beside it" in errors
    assert out.read_bytes() == before


def test_lines_may_be_added(work):
    lines = [{"prompt": "a"}, {"prompt": "b"}]
    _, before, _ = work(lines)
    code, after, _ = work([*lines, {"prompt": "c"}])
    assert code == 0
    assert sorted(after) == [0, 1, 2]
    assert {index: after[index] for index in before} == before


def test_stop_text_ends_a_text_before_it(work):
    _, plain, _ = work([{"prompt": "a", "temperature": 0}], output="plain.jsonl")
    text = plain[0]["texts"][0]
    _, cut, _ = work([{"prompt": "a", "temperature": 0}], "--stop_text", text[1:3], output="cut.jsonl")
    assert cut[0]["texts"] == [text[: text.index(text[1:3])]]
    assert cut[0]["finish"] == ["stop"]


def test_a_file_that_is_no_output_is_not_touched(folder, tmp_path, capsys):
    source, notes = tmp_path / "in.jsonl", tmp_path / "notes"
    source.write_text('{"prompt": "a"}\n')
    notes.write_text("my notes\n")
    arguments = ["--model", str(folder), "--input", str(source), "--output", str(notes)]
    assert generate.main(arguments) == 1
    assert "notes exists, and notes.settings.json is not beside it" in capsys.readouterr().err
    assert notes.read_text() == "my notes\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--input", "a"), "--input needs --output"),
        (("--input", "a", "--output", "./a"), "--output is ./a, the input itself"),
        (("--input", "a", "--output", "b", "--suffix", "c"), "--suffix is for --prompt"),
        (("--prompt", "a", "--output", "b"), "--output is for --input"),
        (("--prompt", "a", "--samples", "0"), "samples is 0"),
        (("--prompt", "a", "--stop_text", ""), "stop is ('',)"),
        (("--input", "no/such/file", "--output", "b"), "no/such/file"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, message):
    assert generate.main(["--model", str(folder), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_reasoning_is_kept_apart(work, monkeypatch):
    written = "비가 와서<|im_end|>\n<|im_start|>assistant\n우산이요.<|im_end|><|endofturn|>"

    class Reasoning(Scripted):
        waiting = 0

        def __init__(self, model, params, vocabulary, settings):
            super().__init__(vocabulary, [written, written])
            self.settings = settings

        def advance(self):
            text = "비가 와서\nassistant\n우산이요."
            (delta,) = super().advance()
            return [delta._replace(text=text)] if delta.finish else [delta]

    monkeypatch.setattr(generate, "Engine", Reasoning)
    line = {"messages": [{"role": "user", "content": "뭘 챙길까?"}]}
    for think, expected in (("show", ["비가 와서"]), ("hide", None)):
        arguments = ("--template", "think", "--new_tokens", "200", "--think", think)
        _, records, _ = work([line], *arguments, output=f"{think}.jsonl")
        assert records[0]["texts"] == ["우산이요."]
        assert records[0].get("reasoning") == expected


def test_what_is_done_is_on_disk_soon(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_files, "_SECONDS", 0.0)
    source = tmp_path / "in.jsonl"
    source.write_text("{}\n")
    output = prompt_files._Output(Path(tmp_path / "out.jsonl"), {"a": 1}, {"bytes": 3, "sha256": ""}, source)
    output.write({"index": 0, "id": "\ud800"})
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"index": 0, "id": "\ud800"}
    output.close()
