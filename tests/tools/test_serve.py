"""The server as a process with a model of its own, and the tool that tries it with many clients."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time

import openai
import pytest

from hcxjax.models.config import DecoderConfig
from tests.serving.fakes import KEY, FakeEngine, running
from tools import load_test, serve
from tools.load_clients import Answer, Target, Wrong, cases, streamed_answer

pytest.importorskip("tokenizers")
TINY = DecoderConfig(300, 2, 32, 32, 2, 1, 16, 256)
SAID = [{"role": "user", "content": "안녕"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tools.random_checkpoint import write_checkpoint

    path = tmp_path_factory.mktemp("serve") / "tiny"
    write_checkpoint(path, TINY, dtype="float32")
    return path


@pytest.fixture(scope="module")
def server(folder, compiled):
    """(process, port) of a server over the real engine."""
    command = [
        sys.executable,
        "-m",
        "tools.serve",
        "--model",
        str(folder),
        "--port",
        "0",
        "--slots",
        "4",
        "--grace",
        "5",
    ]
    # Compiles as fast as tests/conftest.py lets this process.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": os.environ.get("XLA_FLAGS", "")}
    environment = compiled | quick | {serve.KEY: KEY}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
    )
    try:
        lines = []
        while not (lines and "http://" in lines[-1]):
            assert process.stdout is not None
            lines.append(process.stdout.readline())
            assert lines[-1], lines
        assert KEY not in "".join(lines)
        port = int(lines[-1].partition("127.0.0.1:")[2].partition("/")[0])
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}", api_key="none needed", max_retries=0) as client:
            end = time.monotonic() + 120
            while time.monotonic() < end and not healthy(client):
                time.sleep(0.1)
        yield process, port
    finally:
        process.kill()
        process.wait()


def healthy(client):
    try:
        return client.get("/health", cast_to=object) == {"status": "ready"}
    except (openai.InternalServerError, openai.APIConnectionError):
        return False


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server[1]}/v1", api_key=KEY, max_retries=0) as found:
        yield found


def test_what_a_seed_writes_is_written_again_alone_and_in_company(client):
    arguments = {"model": "tiny", "max_tokens": 24, "seed": 11, "temperature": 0.8}
    one = client.completions.create(prompt="가나다", **arguments)
    assert one.usage.completion_tokens == 24 or one.choices[0].finish_reason == "stop"
    both = client.completions.create(prompt=["라", "가나다", "마"], n=2, **arguments)
    assert both.choices[2].text == one.choices[0].text
    assert both.choices[3].text != one.choices[0].text
    parts = client.completions.create(prompt="가나다", stream=True, **arguments)
    assert "".join(part.choices[0].text for part in parts) == one.choices[0].text
    assert client.completions.create(prompt="가나다", **arguments | {"seed": 12}).choices[0].text != one.choices[0].text


def test_a_stop_string_and_log_probabilities(client):
    arguments = {"model": "tiny", "prompt": "def f(", "max_tokens": 40, "temperature": 0, "logprobs": 1}
    whole = client.completions.create(**arguments).choices[0]
    assert all(logprob < 0 for logprob in whole.logprobs.token_logprobs)
    stop = whole.text[3:6]
    cut = client.completions.create(**arguments, stop=stop).choices[0]
    assert (cut.text, cut.finish_reason) == (whole.text[: whole.text.index(stop)], "stop")


def test_chat_in_the_model_s_form(client):
    got = client.chat.completions.create(model="tiny", messages=SAID, max_tokens=8, n=2)
    assert [choice.message.role for choice in got.choices] == ["assistant"] * 2
    with pytest.raises(openai.BadRequestError, match="role 'robot'"):
        client.chat.completions.create(model="tiny", messages=[{"role": "robot", "content": "a"}])


def test_the_tool_that_tries_it_is_content_and_sigterm_lets_a_stream_end(server, capsys, monkeypatch):
    process, port = server
    monkeypatch.setenv(serve.KEY, KEY)
    arguments = ["--port", str(port), "--model", "tiny", "--clients", "12", "--seconds", "1.5", "--slow", "0.5"]
    assert load_test.main(arguments) == 0, capsys.readouterr()
    shown = capsys.readouterr().out
    assert "| plain |" in shown
    assert "still waiting or running at the end: 0" in shown
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=KEY, max_retries=0) as client:
        stream = client.completions.create(model="tiny", prompt="a", max_tokens=200, seed=1, stream=True)
        first = next(iter(stream))
        process.send_signal(signal.SIGTERM)
        *_, last = [first, *stream]
    assert last.choices[0].finish_reason in ("length", "stop")
    assert process.wait(20) == 0


@pytest.mark.slow
def test_forty_clients_for_ten_seconds(folder, compiled):
    command = [sys.executable, "-m", "tools.serve", "--model", str(folder), "--port", "8977", "--slots", "8"]
    process = subprocess.Popen(command, env=compiled | {serve.KEY: KEY})
    try:
        with openai.OpenAI(base_url="http://127.0.0.1:8977", api_key=KEY, max_retries=0) as client:
            while not healthy(client):
                time.sleep(0.2)
        arguments = [sys.executable, "-m", "tools.load_test", "--port", "8977", "--model", "tiny"]
        subprocess.run(
            [*arguments, "--clients", "40", "--seconds", "10", "--slow", "4"],
            env=os.environ | {serve.KEY: KEY},
            check=True,
            timeout=200,
        )
    finally:
        process.terminate()
        assert process.wait(60) == 0


class Mixing(FakeEngine):
    """Now and then swaps the texts of two samples."""

    def advance(self):
        deltas = super().advance()
        if len(deltas) > 1 and deltas[0].text and deltas[1].text and len(self.requests) > 20:
            one, other, *rest = deltas
            return [one._replace(text=other.text), other._replace(text=one.text), *rest]
        return deltas


class Leaking(FakeEngine):
    """Never forgets what was given up."""

    kept = 0
    waiting = property(lambda self: self.kept)

    def cancel(self, number):
        self.kept += 1
        super().cancel(number)


class Lost(FakeEngine):
    """Never ends a sample of some requests."""

    def advance(self):
        return [delta._replace(finish=None) if delta.request > 20 else delta for delta in super().advance()]


def attacked(vocabulary, engine, limit=5.0):
    with running(engine, vocabulary) as house:
        target = Target("127.0.0.1", house.port, "fake/korean", KEY, limit, 0.2)
        return asyncio.run(load_test.attack(target, cases("fake/korean", 9, 0, chat=True), 8, 0.6))


@pytest.fixture(scope="module")
def vocabulary(folder):
    from hcxjax.text.vocabulary import Vocabulary

    return Vocabulary(str(folder / "tokenizer.json"))


def test_a_good_server_is_told_from_bad_ones(vocabulary):
    report = attacked(vocabulary, FakeEngine(vocabulary))
    assert report.faults(growth=2**30) == []
    assert {outcome.end for outcome in report.outcomes} <= {"ok", "cut off"}
    mixed = attacked(vocabulary, Mixing(vocabulary, steps=1)).faults(2**30)
    assert any("differs" in fault or "another's" in fault for fault in mixed)
    lost = attacked(vocabulary, Lost(vocabulary), limit=0.5).faults(2**30)
    assert any("HANGS" in fault for fault in lost)


def test_a_server_that_keeps_what_was_given_up_is_found(vocabulary):
    engine = Leaking(vocabulary, slots=2, steps=1)
    engine.round_seconds = 0.002
    report = attacked(vocabulary, engine, limit=0.5)
    assert f"{engine.kept} still wait or run" in report.faults(2**30)


def test_streams_that_end_early_or_fail_are_no_answers():
    good = [b'data: {"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}', b"data: [DONE]"]
    assert streamed_answer(good, 1) == Answer(("a",), ("stop",))
    for bad in ([], good[:1], [b'data: {"error":{"code":"engine_failed"}}', b"data: [DONE]"]):
        with pytest.raises(Wrong):
            streamed_answer(bad, 1)


@pytest.mark.parametrize("key", ["", "  ", "sk a", "열쇠", "a\x00b"])
def test_keys_that_no_header_carries_are_refused(folder, tmp_path, capsys, key):
    (tmp_path / "key").write_text(key)
    arguments = ["--model", str(folder), "--port", "0", "--api_key_file", str(tmp_path / "key")]
    assert serve.main(arguments) == 1
    shown = capsys.readouterr().err
    assert "must be printable ASCII" in shown
    assert key.strip() not in shown or not key.strip()


def test_a_key_from_a_file_or_the_environment(tmp_path, monkeypatch):
    (tmp_path / "key").write_text("sk-file\n")
    monkeypatch.delenv(serve.KEY, raising=False)
    assert serve.api_key(None) is None
    monkeypatch.setenv(serve.KEY, "sk-environment")
    assert serve.api_key(None) == "sk-environment"
    assert serve.api_key(str(tmp_path / "key")) == "sk-file"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "nowhere"], "nowhere has no config.gin"),
        (["--max_tokens", "0"], "CallLimits.max_tokens is 0"),
        (["--max_queue", "0"], "EngineSettings.queue is 0"),
        (["--max_body_bytes", "0"], "Door.body_bytes is 0"),
        (["--context", "999"], "--context is 999"),
        (["--port", "70000"], "cannot listen at 127.0.0.1 port 70000"),
        (["--host", "no such host"], "cannot listen at no such host"),
        (["--api_key_file", "missing"], "missing"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, arguments, message):
    assert serve.main(["--model", str(folder), "--port", "0", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_an_address_that_is_taken(folder, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert serve.main(["--model", str(folder), "--port", port]) == 1
    assert f"cannot listen at 127.0.0.1 port {port}" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as stopped:
        serve.main(["--help"])
    assert stopped.value.code == 0
    assert "--api_key_file" in capsys.readouterr().out
