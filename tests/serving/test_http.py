"""What clients that misbehave get, and what that does to others."""

import json
import socket
import time

import pytest

from hcxjax.serving.server import Patient
from tests.serving.fakes import FakeEngine, running, until
from tests.serving.raw import MODEL, Connection, asked, fetched

SHORT = {"prompt": "a", "max_tokens": 3}
LONG = {"prompt": "a", "max_tokens": 200, "stream": True}


@pytest.fixture(scope="module")
def small(vocabulary):
    """A server that takes 2,000 bytes within 0.3 s."""
    with running(FakeEngine(vocabulary), vocabulary, body_bytes=2000, body_seconds=0.3) as found:
        yield found


def freed(house):
    return house.engine.idle and house.bridge.under_way == 0 and house.bridge.active_slots == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b'{"model": ', "not valid JSON"),
        (b"[1]", "must be a JSON object"),
        (b'{"temperature": NaN}', "NaN is no JSON"),
        (b'\xff\xfe{"a": 1}', "not valid JSON in UTF-8"),
        (b'{"a":' + b"[" * 1900, "nested too deeply"),
        (b'{"a":' + b"9" * 1900, "the body"),
        (b'{"model": "fake/korean", "prompt": "\\ud800"}', "lone surrogate"),
        (b'{"model": "fake/korean", "prompt": "a", "stop": "\\ud800"}', "lone surrogate"),
        (b'{"model": "\\ud800", "prompt": "a"}', "no model '"),
        (b'{"model": "fake/korean", "prompt": "a", "\\ud800": 1}', "unknown field"),
        (b'{"model": "fake/korean", "prompt": "a", "temperature": ' + b"9" * 400 + b"}", "from 0 to 2"),
        (b'{"prompt": "a"}', "model is missing"),
    ],
)
def test_malformed_bodies(small, body, message):
    status, answer = asked(small.port, body)
    assert status == (404 if "no model" in message else 400)
    assert message in answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_bodies_that_say_they_are_too_large(small):
    status, answer = asked(small.port, b"x" * 2001)
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    assert asked(small.port, b" " * 1900 + json.dumps({"model": MODEL, **SHORT}).encode())[0] == 200


def test_bodies_that_do_not_say_it(small):
    connection = Connection(small.port)
    connection.head("/v1/completions", transfer_encoding="chunked")
    for _ in range(30):
        connection.send(b"64\r\n" + b" " * 100 + b"\r\n")
    connection.send(b"0\r\n\r\n")
    assert connection.answer()[0] == 413
    assert connection.rest() == b""


def test_a_body_without_end_is_cut_off(small):
    connection = Connection(small.port)
    connection.head("/v1/completions", transfer_encoding="chunked")
    with pytest.raises(OSError):  # reset, refused, or a broken pipe
        for _ in range(100_000):
            connection.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")


def test_a_client_that_sends_all_before_it_reads_sees_why_not(vocabulary):
    with running(FakeEngine(vocabulary), vocabulary, body_bytes=500_000) as house:
        for _ in range(3):
            assert asked(house.port, b" " * 3_500_000)[0] == 413


def test_what_is_thrown_away_has_an_end(vocabulary, monkeypatch):
    monkeypatch.setattr("hcxjax.serving.http._LINGER_SECONDS", 60.0)
    with running(FakeEngine(vocabulary), vocabulary, body_bytes=2000, body_seconds=60.0) as house:
        connection = Connection(house.port)
        connection.head("/v1/completions", transfer_encoding="chunked")
        with pytest.raises(OSError):  # reset, refused, or a broken pipe
            for _ in range(3000):
                connection.send(b"3e8\r\n" + b" " * 1000 + b"\r\n")
                time.sleep(0.0005)


def test_a_client_that_asks_first_is_told_at_once(small):
    connection = Connection(small.port)
    connection.head("/v1/completions", content_length=5000, expect="100-continue")
    assert connection.answer()[0] == 413


def test_a_body_that_trickles(small):
    connection = Connection(small.port)
    connection.head("/v1/completions", content_length=50)
    connection.send(b"{")
    assert connection.answer()[0] == 408


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", None])
def test_what_another_site_s_page_may_send_is_refused(small, kind):
    connection = Connection(small.port)
    connection.head("/v1/completions", content_length=2, **{"content-type": kind})
    connection.send(b"{}")
    assert connection.answer()[0] == 415


def test_paths_and_methods(small):
    assert fetched(small.port, "/v1/nothing")[0] == 404
    status, answer = fetched(small.port, "/v1/completions")
    assert (status, answer["error"]["type"]) == (405, "invalid_request_error")


def test_hosts(vocabulary):
    with running(FakeEngine(vocabulary), vocabulary, key=None, hosts=("localhost", "[::1]")) as house:
        for host in ("localhost", "localhost:8000", "[::1]:80", "[::1]"):
            assert fetched(house.port, "/v1/models", authorization=None, host=host)[0] == 200
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", ""):
            assert fetched(house.port, "/v1/models", authorization=None, host=host)[0] == 403
        assert fetched(house.port, "/health", host="10.0.0.1:8000")[0] == 200


def test_the_key_guards_all_but_health(small):
    for path in ("/v1/models", "/metrics", "/nothing"):
        assert fetched(small.port, path, authorization=None)[0] == 401
        assert fetched(small.port, path, authorization="Basic sk-loopback")[0] == 401
    assert fetched(small.port, "/health", authorization=None) == (200, {"status": "ready"})
    assert asked(small.port, SHORT, authorization=None)[0] == 401


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(vocabulary, stream):
    engine = FakeEngine(vocabulary, slots=2, steps=1)
    engine.round_seconds = 0.01
    with running(engine, vocabulary) as house:
        connection = Connection(house.port).ask({**LONG, "n": 3, "stream": stream})
        until(lambda: engine.active_slots == 2 and engine.waiting == 1)
        connection.close()
        until(lambda: freed(house), 1.0)
        assert 'hcxjax_cancelled_total{reason="client_gone"} 1.0' in fetched(house.port, "/metrics")[1]
        assert asked(house.port, SHORT)[0] == 200


def test_a_reader_that_does_not_read_is_cut_off_and_others_are_not(vocabulary, monkeypatch):
    monkeypatch.setattr(Patient, "stall_seconds", 0.5)
    engine = FakeEngine(vocabulary, slots=20, steps=1)
    engine.round_seconds = 0.003
    with running(engine, vocabulary, behind=500, samples=16) as house:
        for listener in house.server.servers[0].sockets:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        slow = Connection(house.port, buffer=2048).ask({**LONG, "prompt": ["a"] * 4, "n": 16, "logprobs": 1})
        until(lambda: freed(house) and engine.requests, 5.0)
        assert len(house.server.server_state.connections) == 1  # it has lost its slots, and is not yet cut off
        assert asked(house.port, SHORT)[0] == 200
        until(lambda: 'cancelled_total{reason="reader_too_slow"} 1.0' in fetched(house.port, "/metrics")[1], 5.0)
        until(lambda: not house.server.server_state.connections, 5.0)
        assert b"[DONE]" not in slow.rest()


def test_a_reader_that_catches_up_gets_all(vocabulary):
    engine = FakeEngine(vocabulary, steps=1)
    with running(engine, vocabulary, behind=1000) as house:
        connection = Connection(house.port, buffer=2048).ask({**LONG, "n": 4, "seed": 1, "logprobs": 1})
        until(lambda: engine.requests and engine.idle)
        time.sleep(0.2)
        events = connection_events(connection)
        texts = [""] * 4
        for event in events:
            texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
        whole = asked(house.port, {**LONG, "n": 4, "seed": 1, "stream": False})[1]
        assert texts == [choice["text"] for choice in whole["choices"]]


def connection_events(connection):
    data = b""
    while b"data: [DONE]" not in data:
        data += connection.socket.recv(500)
    body = data.partition(b"\r\n\r\n")[2]
    text = b""
    while body:  # chunked
        size, _, body = body.partition(b"\r\n")
        text, body = text + body[: int(size or b"0", 16)], body[int(size or b"0", 16) + 2 :]
    return [json.loads(line[6:]) for line in text.decode().split("\n\n") if line.startswith("data: {")]


def test_peers_that_send_no_head_are_cut_off(vocabulary, monkeypatch):
    monkeypatch.setattr(Patient, "stall_seconds", 0.3)
    with running(FakeEngine(vocabulary), vocabulary) as house:
        silent, trickling = Connection(house.port), Connection(house.port)
        start = time.monotonic()
        for _ in range(10):
            if time.monotonic() - start < 0.25:
                trickling.send(b"G")
            time.sleep(0.02)
        assert silent.rest() == b""
        assert trickling.rest() == b""
        assert time.monotonic() - start < 2


def test_an_upload_that_goes_on_after_its_answer_is_cut_off(vocabulary, monkeypatch):
    monkeypatch.setattr(Patient, "stall_seconds", 0.3)
    with running(FakeEngine(vocabulary), vocabulary) as house:
        connection = Connection(house.port)
        connection.head("/v1/completions", transfer_encoding="chunked", authorization="Bearer wrong")
        start = time.monotonic()
        with pytest.raises(OSError):  # reset, refused, or a broken pipe
            while time.monotonic() - start < 5:
                connection.send(b"4\r\nabcd\r\n")
                time.sleep(0.01)
        assert time.monotonic() - start < 3


def test_a_full_queue(vocabulary):
    engine = FakeEngine(vocabulary, slots=1, steps=1)
    engine.round_seconds = 0.02
    with running(engine, vocabulary, capacity=3) as house:
        held = [Connection(house.port).ask(LONG) for _ in range(3)]
        until(lambda: house.bridge.under_way == 3)
        status, answer = asked(house.port, SHORT)
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        until(lambda: "queue_length 2.0" in fetched(house.port, "/metrics")[1])
        assert "active_slots 1.0" in fetched(house.port, "/metrics")[1]
        for connection in held:
            connection.close()
        until(lambda: freed(house))
        assert asked(house.port, SHORT)[0] == 200


def test_the_engine_s_own_queue(vocabulary):
    engine = FakeEngine(vocabulary, slots=1, steps=1, queue=2)
    engine.round_seconds = 0.02
    with running(engine, vocabulary) as house:
        status, answer = asked(house.port, {**SHORT, "prompt": ["a"] * 5})
        assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        until(lambda: freed(house))


def test_while_it_warms_up(vocabulary):
    engine = FakeEngine(vocabulary)
    engine.warm.clear()
    with running(engine, vocabulary, wait=False) as house:
        assert fetched(house.port, "/health") == (503, {"status": "warming up"})
        assert asked(house.port, SHORT)[1]["error"]["code"] == "not_ready"
        engine.warm.set()
        until(lambda: fetched(house.port, "/health") == (200, {"status": "ready"}))
        assert asked(house.port, SHORT)[0] == 200


def test_when_the_engine_fails(vocabulary):
    engine = FakeEngine(vocabulary, slots=1, steps=1)
    engine.round_seconds = 0.02
    with running(engine, vocabulary) as house:
        streams = Connection(house.port).ask(LONG)
        waits = Connection(house.port).ask({**LONG, "stream": False})
        until(lambda: house.bridge.under_way == 2 and engine.waiting)
        engine.fails = True
        status, answer = waits.answer()
        assert (status, answer["error"]["code"]) == (500, "engine_failed")
        assert '"code":"engine_failed"' in tail(streams)
        assert fetched(house.port, "/health") == (503, {"status": "failed"})
        assert asked(house.port, SHORT)[0] == 503
        until(lambda: house.bridge.under_way == 0)


def tail(connection):
    text = b""
    while b"data: [DONE]" not in text:
        text += connection.socket.recv(65536)
    return text.decode(errors="replace")


def test_shutting_down_lets_what_ends_in_time_end(vocabulary):
    engine = FakeEngine(vocabulary, steps=2)
    engine.round_seconds = 0.01
    with running(engine, vocabulary, grace=10) as house:
        connection = Connection(house.port).ask({**LONG, "max_tokens": 60})
        until(lambda: engine.active_slots)
        house.server.should_exit = True
        assert '"finish_reason":"length"' in tail(connection)
        with pytest.raises(OSError):  # reset, refused, or a broken pipe
            Connection(house.port)


def test_shutting_down_ends_what_does_not(vocabulary):
    engine = FakeEngine(vocabulary, steps=1)
    engine.round_seconds = 0.05
    with running(engine, vocabulary, grace=0.3) as house:
        streams = Connection(house.port).ask(LONG)
        waits = Connection(house.port).ask({**LONG, "stream": False})
        late = Connection(house.port)
        late.head("/v1/completions", content_length=10)
        until(lambda: house.bridge.under_way == 2)
        house.server.should_exit = True
        assert '"code":"shutting_down"' in tail(streams)
        assert waits.answer()[1]["error"]["code"] == "shutting_down"
        until(lambda: b'hcxjax_cancelled_total{reason="shutting_down"} 2.0' in house.metrics.exposed())
        until(lambda: house.engine.idle)


def test_metrics(vocabulary):
    with running(FakeEngine(vocabulary), vocabulary) as house:
        assert asked(house.port, SHORT)[0] == 200
        connection = Connection(house.port).ask({**SHORT, "stream": True})
        tail(connection)
        assert asked(house.port, {**SHORT, "max_tokens": 0})[0] == 400
        fetched(house.port, "/nobody/asked/for/this")
        text = fetched(house.port, "/metrics")[1]
    for line in (
        'hcxjax_requests_total{route="/v1/completions",status="200"} 2.0',
        'hcxjax_requests_total{route="/v1/completions",status="400"} 1.0',
        'hcxjax_requests_total{route="other",status="404"} 1.0',
        "hcxjax_prompt_tokens_total 4.0",
        "hcxjax_generated_tokens_total 6.0",
        "hcxjax_time_to_first_token_seconds_count 2.0",
        'hcxjax_request_duration_seconds_count{route="/v1/completions"} 3.0',
        "hcxjax_queue_length 0.0",
        "hcxjax_active_slots 0.0",
    ):
        assert line in text
    assert "nobody" not in text
