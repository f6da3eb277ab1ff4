"""The bridge by itself: order, all or nothing, ends."""

import asyncio

import pytest

from hcxjax.inference.requests import Delta, Request
from hcxjax.inference.sampling import Sampling
from hcxjax.serving.bridge import Arrival, Bridge, Call, failed
from hcxjax.serving.refusals import Refusal
from tests.serving.fakes import FakeEngine, text_for, until

GREEDY = Sampling(temperature=0)


@pytest.fixture
def engine(vocabulary):
    return FakeEngine(vocabulary)


@pytest.fixture
def bridge(engine):
    found = Bridge(engine, capacity=10)
    found.start()
    until(lambda: found.state == "ready")
    yield found
    assert found.close(5)


def request(prompt=(1, 2), tokens=20, samples=1):
    return Request(prompt, tokens, GREEDY, samples=samples)


async def whole(call):
    texts = {}
    while arrivals := await call.read():
        for place, delta in arrivals:
            texts[place, delta.sample] = texts.get((place, delta.sample), "") + delta.text
    return texts


def expected(vocabulary, prompt, tokens, sample=0):
    return vocabulary.decode(vocabulary.encode(text_for(prompt, 0, sample))[:tokens]).rstrip("\ufffd")


def test_many_calls_at_once_are_not_mixed_up(bridge, vocabulary):
    async def one(number):
        call = await bridge.open([request((number, 1), 10 + number), request((number, 2), 12, samples=2)])
        return await whole(call)

    async def all_of_them():
        results = []
        for start in range(0, 30, 5):  # two requests each: the capacity
            results += await asyncio.gather(*map(one, range(start, start + 5)))
            for call in list(bridge._open):
                bridge.cancel(call)
        return results

    for number, texts in enumerate(asyncio.run(all_of_them())):
        assert texts == {
            (0, 0): expected(vocabulary, (number, 1), 10 + number),
            (1, 0): expected(vocabulary, (number, 2), 12),
            (1, 1): expected(vocabulary, (number, 2), 12, 1),
        }


def test_requests_are_taken_together_or_not_at_all(bridge, engine):
    async def refused():
        with pytest.raises(Refusal, match="too long for the fake") as raised:
            await bridge.open([request(), request((1,) * 300)])
        assert raised.value.status == 400
        assert bridge.under_way == 0
        texts = await whole(await bridge.open([request()]))
        assert len(texts) == 1

    asyncio.run(refused())
    assert engine.cancels == [0]


def test_a_call_that_is_given_up_while_it_is_handed_over_leaves_nothing(bridge, engine):
    engine.gate.clear()

    async def given_up():
        call = await bridge.open([request(tokens=100)])
        await asyncio.to_thread(engine.inside.wait)
        second = asyncio.ensure_future(bridge.open([request((7, 7), tokens=100)]))
        await asyncio.sleep(0)  # handed over, and not accepted while the engine is in a round
        second.cancel()
        engine.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await second
        bridge.cancel(call)

    asyncio.run(given_up())
    until(lambda: engine.idle and bridge.under_way == 0, 2.0)


def test_what_had_arrived_is_read_before_the_error(bridge, engine):
    async def both():
        call = await bridge.open([request(tokens=100)])
        first = await call.read()
        assert first[0].delta.tokens
        engine.fails = True
        with pytest.raises(Refusal, match="the engine failed"):
            while True:
                assert await call.read()
        with pytest.raises(Refusal) as raised:
            await bridge.open([request()])
        assert raised.value.status == 503

    asyncio.run(both())
    assert bridge.state == "failed"
    assert (bridge.waiting, bridge.active_slots) == (0, 0)


def test_an_engine_that_cannot_warm_up_is_no_good(engine):
    engine.warm_up = lambda: 1 / 0
    bridge = Bridge(engine, 1)
    bridge.start()
    until(lambda: bridge.state == "failed")
    assert bridge.close(5)


def test_unexpected_errors_of_submit_end_the_call_alone(bridge, engine, monkeypatch):
    monkeypatch.setattr(engine, "submit", lambda request: 1 / 0)

    async def ended():
        with pytest.raises(Refusal) as raised:
            await bridge.open([request()])
        assert raised.value.status == 500

    asyncio.run(ended())
    assert bridge.state == "ready"


def test_a_bridge_that_is_stopped_while_it_warms_up_never_opens(engine):
    engine.warm.clear()
    bridge = Bridge(engine, 1)
    bridge.start()
    bridge.stop()
    engine.warm.set()
    bridge._inbox.put(engine.inside.set)
    assert engine.inside.wait(5)
    assert bridge.state == "shutting down"
    assert bridge.close(5)


def test_a_reader_may_be_behind_by_so_much_and_no_more():
    async def reading():
        call = Call([request()], most=5)
        four = [Arrival(0, Delta(0, 0, (1, 2, 3, 4), (0.0,) * 4, "abcd", None))]
        for _ in range(3):
            assert call.put(four)
            assert await call.read() == four
        assert call.put(four)
        assert not call.put(four)
        with pytest.raises(Refusal, match="not read fast enough"):
            await call.read()

    asyncio.run(reading())


def test_a_bridge_that_never_started_can_be_closed(engine):
    assert Bridge(engine, 1).close(1)


def test_a_failed_call_takes_nothing_more():
    async def ended():
        call = Call([request()], 5)
        call.accepted.set_result(None)
        call.fail(failed())
        assert call.put([])
        with pytest.raises(Refusal):
            await call.read()
        call.fail(Refusal(400, "later"))
        assert call.error is not None
        assert call.error.status == 500

    asyncio.run(ended())
