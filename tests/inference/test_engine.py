"""The engine against plain full forwards, and against itself with other company."""

import codecs
import dataclasses
import functools
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hcxjax.inference import steps
from hcxjax.inference.engine import Engine, EngineSettings
from hcxjax.inference.requests import Continuation, Request
from hcxjax.inference.sampling import Sampling
from hcxjax.inference.scheduler import QueueFull
from hcxjax.mesh import Layout
from hcxjax.models.decoder import Decoder
from hcxjax.objectives.language_model import LanguageModel

GREEDY = Sampling(temperature=0)
SETTINGS = EngineSettings(slots=4, chunk=16, steps=3, listed=4)
PROMPTS = [[5, 17, 33, 2, 9], [44], [7, 7, 8, 1, 60, 3, 12, 21, 30, 11] * 3]
NEAR = 1e-4
"""Between two perturbed logits nearer than this, a cache and a full forward may choose differently."""


@pytest.fixture(scope="module")
def model(tiny):
    return dataclasses.replace(tiny, max_length=96)


@pytest.fixture(scope="module")
def params(model, random_params):
    return random_params(model, 2)


@pytest.fixture(scope="module")
def engine(model, params):
    return Engine(model, params, settings=SETTINGS)


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens_BT, segment_ids_BT):
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    return Decoder(config).apply({"params": params}, tokens_BT, segment_ids_BT, positions_BT)


def full_logits(model, params, tokens):
    """logits_TV of one text by a forward without a cache, padded to the context so that one program serves all."""
    padded = np.zeros((1, model.max_length), np.int32)
    padded[0, : len(tokens)] = tokens
    segments = (np.arange(model.max_length) < len(tokens))[None].astype(np.int32)
    return np.asarray(forward(model, params, padded, segments))[0, : len(tokens)]


@functools.cache
def noise(seed, stream, position, size):
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), position)
    return np.asarray(jax.random.gumbel(key, (size,)))


def perturbed(logits_V, seen, request, sample, position):
    """The logits whose largest is chosen, by numpy."""
    sampling, logits_V = request.sampling, logits_V.astype(np.float64)
    for token in seen:
        factor = sampling.repetition_penalty
        logits_V[token] = logits_V[token] / factor if logits_V[token] > 0 else logits_V[token] * factor
    if sampling.temperature == 0:
        return logits_V
    logits_V = logits_V / sampling.temperature
    order = list(np.argsort(-logits_V, kind="stable"))
    order = order[: sampling.top_k or None]
    chances = np.exp(logits_V[order] - logits_V[order[0]])
    before = np.cumsum(chances / chances.sum()) - chances / chances.sum()
    kept = np.array(order)[(before < sampling.top_p) & (chances >= sampling.min_p)]
    result = np.full(len(logits_V), -np.inf)
    result[kept] = logits_V[kept] + noise(sampling.seed, request.stream + sample, position, len(logits_V))[kept]
    return result


def agrees_with_full_forwards(model, params, request, number, sample: Continuation) -> tuple[int, int]:
    """(tokens, tokens chosen otherwise at a near tie); fails on any other difference.

    Every token is looked at after the tokens that the engine wrote before it: one forward a sample.
    """
    tokens, ties = [*request.prompt, *sample.tokens], 0
    logits_TV = full_logits(model, params, tokens)
    for at, token in enumerate(sample.tokens, len(request.prompt)):
        scores_V = perturbed(logits_TV[at - 1], set(tokens[:at]), request, number, at)
        best = int(np.argmax(scores_V))
        if best != token:
            assert scores_V[best] - scores_V[token] < NEAR, (request, at, best, token)
            ties += 1
    return len(sample.tokens), ties


def random_request(draw: random.Random, vocab: int, beginnings) -> Request:
    """Of all kinds: shared and own beginnings, greedy and sampled, filters, stops, several samples."""
    prompt = [*draw.choice(beginnings), *(draw.randrange(vocab) for _ in range(draw.randrange(1, 14)))]
    sampling = Sampling(
        temperature=draw.choice([0.0, 0.0, 0.7, 1.0, 1.6]),
        top_k=draw.choice([0, 0, 5, 20]),
        top_p=draw.choice([1.0, 1.0, 0.9, 0.5]),
        min_p=draw.choice([0.0, 0.0, 0.05]),
        repetition_penalty=draw.choice([1.0, 1.0, 1.3]),
        seed=draw.randrange(5),
    )
    return Request(
        prompt,
        new_tokens=draw.choice([1, 2, 7, 20, 40]),
        sampling=sampling,
        stop_ids=tuple(draw.sample(range(vocab), draw.choice([0, 0, 1, 3]))),
        stop=tuple(draw.sample(["a", "가", "bc", "서울", "\n나"], draw.choice([0, 0, 1, 2]))),
        samples=draw.choice([1, 1, 1, 2, 5]),
        stream=draw.randrange(100),
        watch=tuple(draw.sample(range(vocab), draw.choice([0, 2]))),
    )


def under_load(engine, requests, draw: random.Random):
    """Submits requests at random moments and cancels some: (samples by request, the numbers that were cancelled)."""
    found = {number: [Continuation() for _ in range(request.samples)] for number, request in enumerate(requests)}
    numbers, cancelled, coming = {}, set(), iter(enumerate(requests))
    left = len(requests)
    while left or not engine.idle:
        for _ in range(min(left, draw.choice([0, 0, 1, 3, 9]))):
            number, request = next(coming)
            numbers[engine.submit(request)] = number
            left -= 1
        if numbers and draw.random() < 0.1:
            number = draw.choice(list(numbers))
            engine.cancel(number)
            cancelled.add(numbers[number])
        assert engine.active_slots <= engine.settings.slots
        for delta in engine.advance():
            sample = found[numbers[delta.request]][delta.sample]
            assert sample.finish is None, "nothing comes after the end"
            sample.add(delta)
    assert not np.any(engine._slots.left_B), "the device, too, knows that all are done"
    return found, cancelled


def check_load(model, params, count, seed):
    draw = random.Random(seed)
    beginnings = [[], [1, 2, 3], [draw.randrange(model.vocab_size) for _ in range(20)], list(range(40))]
    requests = [random_request(draw, model.vocab_size, beginnings) for _ in range(count)]
    engine = Engine(model, params, Pieces(), SETTINGS)
    found, cancelled = under_load(engine, requests, draw)
    alone = Engine(model, params, Pieces(), dataclasses.replace(SETTINGS, prefix_tokens=0))
    tokens = ties = cut = 0
    for number, request in enumerate(requests):
        (again,) = alone.complete([request])
        for sample, (loaded, lonely) in enumerate(zip(found[number], again, strict=True)):
            if loaded.finish == "cancelled":
                assert number in cancelled
                cut += 1
                length = len(loaded.tokens)
                assert loaded.tokens == lonely.tokens[:length] and loaded.logprobs == lonely.logprobs[:length]
                continue
            assert loaded.tokens == lonely.tokens and loaded.logprobs == lonely.logprobs, "bit for bit"
            assert loaded.finish == lonely.finish and loaded.text == lonely.text
            assert (loaded.watched is None) == (not request.watch)
            if request.watch:
                np.testing.assert_array_equal(loaded.watched, lonely.watched)
            more = agrees_with_full_forwards(model, params, request, sample, loaded)
            tokens, ties = tokens + more[0], ties + more[1]
    assert cut > 0
    assert engine._prefill.shared_tokens > 0
    assert ties <= max(1, tokens / 10_000)
    return tokens, ties, cut


def test_under_load_every_request_is_what_it_is_alone_and_what_full_forwards_write(model, params):
    tokens, _, _ = check_load(model, params, 40, seed=3)
    assert tokens > 400


@pytest.mark.slow
def test_500_requests_under_load(model, params):
    tokens, ties, cut = check_load(model, params, 500, seed=1)
    print(f"{tokens} tokens, {ties} chosen otherwise at a near tie, {cut} samples cancelled")
    assert tokens > 5000


def test_greedy_runs_up_to_the_context(model, params, engine):
    requests = [Request(prompt, 200, GREEDY) for prompt in PROMPTS]
    for request, (sample,) in zip(requests, engine.complete(requests), strict=True):
        assert len(request.prompt) + len(sample.tokens) == model.max_length
        assert sample.finish == "length"
        assert agrees_with_full_forwards(model, params, request, 0, sample)[1] == 0


def test_a_stop_id_ends_the_sample_and_is_its_last_token(engine):
    (whole,) = engine.complete([Request(PROMPTS[0], 30, GREEDY)])[0]
    stop = whole.tokens[11]
    first = whole.tokens.index(stop)
    (sample,) = engine.complete([Request(PROMPTS[0], 30, GREEDY, stop_ids=(60, stop))])[0]
    assert sample.tokens == whole.tokens[: first + 1]
    assert sample.finish == "stop"
    (at_the_limit,) = engine.complete([Request(PROMPTS[0], first + 1, GREEDY, stop_ids=(stop,))])[0]
    assert at_the_limit.finish == "stop"
    (before,) = engine.complete([Request(PROMPTS[0], first, GREEDY, stop_ids=(stop,))])[0]
    assert (before.tokens, before.finish) == (whole.tokens[:first], "length")


def test_samples_share_the_prompt_and_are_numbered_streams(model, params):
    engine = Engine(model, params, settings=SETTINGS)
    sampling = Sampling(seed=4)
    samples = engine.complete([Request(PROMPTS[2], 8, sampling, samples=6, stream=10)])[0]
    assert engine._prefill.read_tokens == len(PROMPTS[2]) - 1
    assert len({tuple(sample.tokens) for sample in samples}) == 6
    (third,) = engine.complete([Request(PROMPTS[2], 8, sampling, stream=12)])[0]
    assert third == samples[2]


def test_prompts_that_begin_alike_read_the_beginning_once(model, params):
    engine = Engine(model, params, settings=SETTINGS)
    beginning = list(range(40))  # two whole chunks of 16, and more
    requests = [Request([*beginning, 50 + number, 1], 4, GREEDY) for number in range(5)]
    shared = engine.complete(requests)
    assert engine._prefill.read_tokens == 41 + 4 * 9
    assert engine._prefill.shared_tokens == 4 * 32
    apart = Engine(model, params, settings=dataclasses.replace(SETTINGS, prefix_tokens=0))
    assert apart.complete(requests) == shared
    assert apart._prefill.read_tokens == 5 * 41


def test_kept_beginnings_are_the_latest_used(model, params):
    engine = Engine(model, params, settings=dataclasses.replace(SETTINGS, prefix_tokens=32))
    one, two, three = ([number] * 17 for number in (1, 2, 3))
    for prompt in (one, two, one, three):  # two is the longest unused when three comes
        engine.complete([Request(prompt, 1, GREEDY)])
    read = engine._prefill.read_tokens
    engine.complete([Request(one, 1, GREEDY)])
    assert engine._prefill.read_tokens == read
    engine.complete([Request(two, 1, GREEDY)])
    assert engine._prefill.read_tokens == read + 16


def test_long_prompts_are_read_between_rounds(model, params):
    """A running sample gets its tokens while a prompt of many chunks is read."""
    engine = Engine(model, params, settings=dataclasses.replace(SETTINGS, prefill_tokens=16))
    running, long = engine.submit(Request([3], 60, GREEDY)), None
    came = []
    for turn in range(8):
        if turn == 1:
            long = engine.submit(Request(list(range(60)) + [1] * 20, 4, GREEDY))
        came.append([delta.request for delta in engine.advance()])
    begins = next(turn for turn, numbers in enumerate(came) if long in numbers)
    assert begins == 5, "79 tokens in chunks of 16, one a round from round 1"
    assert all(running in numbers for numbers in came)


def test_logprobs_are_the_trainer_s(model, params, engine):
    request = Request(PROMPTS[2], 20, Sampling(temperature=1.4, top_k=9, repetition_penalty=1.2, seed=3), watch=(4, 60))
    (sample,) = engine.complete([request])[0]
    text = np.array([*request.prompt, *sample.tokens], np.int32)
    batch = {
        "tokens_BT": text[None, :-1],
        "targets_BT": text[None, 1:],
        "segment_ids_BT": np.ones((1, len(text) - 1), np.int32),
        "positions_BT": np.arange(len(text) - 1, dtype=np.int32)[None],
    }
    trained = LanguageModel(model).scores(params, batch)
    here = slice(len(PROMPTS[2]) - 1, None)
    np.testing.assert_allclose(sample.logprobs, trained.logprob_BT[0, here], atol=2e-5)
    logprobs_TV = jax.nn.log_softmax(full_logits(model, params, text))[here][:-1]
    np.testing.assert_allclose(sample.watched, logprobs_TV[:, [4, 60]], atol=2e-5)


def test_logprobs_at_the_temperature_that_is_asked_for(model, params, engine):
    sampling = Sampling(temperature=0.7, seed=3)
    asked = [Request(PROMPTS[0], 12, sampling, watch=(4,), logprob_temperature=temperature) for temperature in (1, 0.7)]
    (plain,), (sample,) = engine.complete(asked)
    assert plain.tokens == sample.tokens
    text = [*PROMPTS[0], *sample.tokens]
    here = slice(len(PROMPTS[0]) - 1, len(text) - 1)
    logprobs_TV = np.asarray(jax.nn.log_softmax(full_logits(model, params, text) / 0.7))[here]
    np.testing.assert_allclose(sample.logprobs, logprobs_TV[np.arange(12), sample.tokens], atol=2e-5)
    np.testing.assert_allclose(sample.watched[:, 0], logprobs_TV[:, 4], atol=2e-5)
    assert np.abs(np.subtract(plain.logprobs, sample.logprobs)).max() > 1e-2


def test_scores_of_given_continuations_are_the_trainer_s(model, params, engine):
    up = list(range(60))
    pairs = [([5], [3]), (up[:15], [9, 8]), (up[:16], [9]), (up[:17], up[:40]), ([1] * 90, [2] * 6)]
    for (prompt, continuation), scores in zip(pairs, engine.score(pairs), strict=True):
        logprobs_TV = jax.nn.log_softmax(full_logits(model, params, [*prompt, *continuation]))[len(prompt) - 1 : -1]
        expected = np.asarray(logprobs_TV)[np.arange(len(continuation)), continuation]
        np.testing.assert_allclose(scores.logprobs, expected, atol=2e-5)
        likeliest_T = np.asarray(logprobs_TV).argmax(-1)
        np.testing.assert_array_equal(scores.likeliest, likeliest_T)
        np.testing.assert_array_equal(scores.top, likeliest_T == np.array(continuation))


def test_scoring_shares_beginnings_and_disturbs_no_reading(model, params):
    engine = Engine(model, params, settings=dataclasses.replace(SETTINGS, prefill_tokens=16))
    long = list(range(50))
    (alone,) = engine.complete([Request(long, 6, GREEDY)])[0]
    engine = Engine(model, params, settings=dataclasses.replace(SETTINGS, prefill_tokens=16))
    number = engine.submit(Request(long, 6, GREEDY))
    engine.advance()  # half read
    (scores,) = engine.score([(long, alone.tokens)])
    assert engine._scoring.shared_tokens == 16
    np.testing.assert_allclose(scores.logprobs, alone.logprobs, atol=2e-5)
    sample = Continuation()
    while not engine.idle:
        for delta in engine.advance():
            assert delta.request == number
            sample.add(delta)
    assert sample == alone


def test_nothing_compiles_after_the_warm_up(model, params, caplog):
    model = dataclasses.replace(model, norm_epsilon=1.1e-5)  # a program of its own
    engine = Engine(model, params, Pieces(), SETTINGS)
    engine.warm_up(scoring=True)
    with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
        draw = random.Random(5)
        requests = [random_request(draw, model.vocab_size, [[], list(range(33))]) for _ in range(12)]
        under_load(engine, requests, draw)
        engine.score([([1, 2], [3]), ([1] * 40, [4] * 20)])
        engine.swap(jax.tree.map(lambda leaf: leaf * 1.1, params))
        caplog.clear()  # the products above
        engine.complete(requests[:3])
        compiled = [record.message for record in caplog.records if "Compiling" in record.message]
    assert compiled == []


def test_compiling_would_be_seen(model, params, caplog):
    with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
        Engine(dataclasses.replace(model, norm_epsilon=1.2e-5), params, settings=SETTINGS).complete([Request([1], 1)])
    assert any("Compiling" in record.message for record in caplog.records)


def test_swapped_weights_write_what_an_engine_of_theirs_does(model, params, random_params):
    other = random_params(model, 9)
    engine = Engine(model, params, settings=SETTINGS)
    requests = [Request(prompt, 12, GREEDY) for prompt in PROMPTS]
    before = engine.complete(requests)
    engine.swap(other)
    assert engine.complete(requests) == Engine(model, other, settings=SETTINGS).complete(requests) != before
    with pytest.raises(ValueError, match="other leaves, shapes or dtypes"):
        engine.swap(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), other))


@pytest.mark.parametrize("layout", [Layout(data=2, fsdp=2, tensor=2), Layout(data=8)])
def test_on_a_mesh_it_writes_the_same(model, params, engine, layout):
    requests = [Request(prompt, 12, GREEDY) for prompt in PROMPTS]
    expected = engine.complete(requests)
    with layout.active():
        boxed = jax.eval_shape(LanguageModel(model).init, jax.random.key(0))
        sharded = jax.device_put(params, layout.param_shardings(boxed))
        meshed = Engine(model, sharded, settings=dataclasses.replace(SETTINGS, slots=8))
        found = meshed.complete(requests)
        spec = meshed._slots.cache.k_LBKSH.sharding.spec
    assert spec[1] is not None, "slots lie on the batch axes"
    assert ("tensor" in spec) == (layout.tensor == 2)
    for (ours,), (alone,) in zip(found, expected, strict=True):
        assert ours.tokens == alone.tokens
        np.testing.assert_allclose(ours.logprobs, alone.logprobs, atol=1e-4)


def test_an_int8_cache_stays_near(model, params):
    request = Request(list(range(30)), 30, GREEDY)
    (exact,) = Engine(model, params, settings=SETTINGS).complete([request])[0]
    engine = Engine(model, params, settings=dataclasses.replace(SETTINGS, cache_dtype="int8"))
    assert engine._slots.cache.k_LBKSH.dtype == jnp.int8
    (scores,) = engine.score([(request.prompt, exact.tokens)])
    error = np.abs(scores.logprobs - exact.logprobs)
    assert 0 < error.max() < 0.3 and error.mean() < 0.06
    assert engine.complete([request])[0][0].tokens[:3] == exact.tokens[:3]


def test_cancelling_frees_the_slot(model, params):
    engine = Engine(model, params, settings=SETTINGS)
    numbers = [engine.submit(Request([number], 50, GREEDY)) for number in range(6)]
    engine.advance()
    assert (engine.active_slots, engine.waiting) == (4, 2)
    engine.cancel(numbers[1])
    engine.cancel(numbers[5])
    engine.cancel(77)  # nobody's
    deltas = engine.advance()
    ended = [(delta.request, delta.finish, delta.tokens) for delta in deltas if delta.finish]
    assert sorted(ended) == [(numbers[1], "cancelled", ()), (numbers[5], "cancelled", ())]
    assert (engine.active_slots, engine.waiting) == (4, 0), "the one that waited has the slot"
    while not engine.idle:
        assert not {delta.request for delta in engine.advance()} & {numbers[1], numbers[5]}
    number = engine.submit(Request([1], 50, GREEDY))
    engine.advance()
    engine.cancel(number)
    assert [delta.finish for delta in engine.advance()] == ["cancelled"]
    assert not np.any(engine._slots.left_B), "the device stops writing, too"


def test_the_queue_has_an_end(model, params):
    engine = Engine(model, params, settings=dataclasses.replace(SETTINGS, queue=2))
    for number in range(SETTINGS.slots + 2):
        engine.submit(Request([number]))
    with pytest.raises(QueueFull, match="6 requests wait"):
        engine.submit(Request([3]))
    with pytest.raises(ValueError, match="complete needs an engine that is idle"):
        engine.complete([Request([1])])
    while not engine.idle:
        engine.advance()
    assert len(engine.complete([])) == 0
    assert [len(samples) for samples in engine.complete([Request([1], 2)] * 7)] == [1] * 7


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request([]), "the prompt has no token"),
        (Request([2, 61]), r"the prompt has an id outside 0\.\.60"),
        (Request([-1]), r"the prompt has an id outside 0\.\.60"),
        (Request([1] * 96), r"96 tokens; the model's context is 96, prompt and answer together"),
        (Request([1], stop_ids=(1, 2, 3, 4, 5)), r"stop_ids has 5 ids; EngineSettings\.listed allows 4"),
        (Request([1], watch=(61,)), r"watch has an id outside 0\.\.60"),
        (Request([1], stop_ids=(2**40,)), r"stop_ids has an id outside 0\.\.60"),
        (Request([1], stop_ids=("a",)), "stop_ids has something that is no whole number"),
        (Request([1.5, 2]), "the prompt has something that is no whole number"),
        (Request([1], stop=("a",)), "stop strings need an engine with a vocabulary"),
    ],
)
def test_requests_that_cannot_be(engine, request_, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)
    assert engine.idle


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"new_tokens": 0}, r"new_tokens is 0"),
        ({"samples": 0}, r"samples is 0"),
        ({"stream": -1}, r"stream is -1"),
        ({"stream": 2**32 - 1, "samples": 2}, r"must stay below 2\^32"),
        ({"stop": "abc"}, r"stop is 'abc'; it must be a tuple"),
        ({"stop": ("",)}, r"none of them empty"),
    ],
)
def test_fields_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Request([1], **fields)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (([], [1]), "prompt 0 has no token"),
        (([1], []), "continuation 0 has no token"),
        (([1], [61]), "continuation 0 has an id outside"),
        (([1] * 90, [2] * 7), "pair 0 has 97 tokens; the context is 96"),
    ],
)
def test_pairs_that_cannot_be_scored(engine, pair, message):
    with pytest.raises(ValueError, match=message):
        engine.score([pair])


@pytest.mark.parametrize("layout", [Layout(data=2, fsdp=2, tensor=2)])
def test_weights_that_lie_elsewhere_are_moved_and_nothing_compiles(model, params, caplog, layout):
    model = dataclasses.replace(model, norm_epsilon=1.3e-5)
    with layout.active():
        boxed = jax.eval_shape(LanguageModel(model).init, jax.random.key(0))
        sharded = jax.device_put(params, layout.param_shardings(boxed))
        engine = Engine(model, sharded, settings=dataclasses.replace(SETTINGS, slots=8))
        engine.warm_up()
        requests = [Request(prompt, 5, GREEDY) for prompt in PROMPTS]
        with jax.log_compiles(True), caplog.at_level("WARNING", logger="jax"):
            before = engine.complete(requests)
            engine.swap(jax.tree.map(np.asarray, params))
            assert engine.complete(requests) == before
        assert not [record.message for record in caplog.records if "Compiling" in record.message]


def test_weights_that_are_no_numbers_do_no_harm_to_what_comes_after(model, params):
    engine = Engine(model, params, settings=SETTINGS)
    requests = [Request(prompt, 20, GREEDY) for prompt in PROMPTS]
    before = engine.complete(requests)
    engine.swap(jax.tree.map(lambda leaf: leaf * np.nan, params))
    assert np.isnan(engine.complete(requests)[0][0].logprobs).all()
    engine.swap(params)
    assert engine.complete(requests) == before


def test_settings_that_cannot_be(model, params):
    with pytest.raises(ValueError, match=r"EngineSettings\.chunk is 100; it must be a power of two"):
        EngineSettings(chunk=100)
    with pytest.raises(ValueError, match=r"EngineSettings\.slots is 0"):
        EngineSettings(slots=0)
    with pytest.raises(ValueError, match=r"cache_dtype is 'int4'; it must be None or 'int8'"):
        EngineSettings(cache_dtype="int4")
    with pytest.raises(ValueError, match=r"EngineSettings\.context is 97; the model's context is 96"):
        Engine(model, params, settings=EngineSettings(context=97))


def test_cached_logits_equal_full_forwards_at_every_position(model, params):
    """Read in parts of every kind, then token by token."""
    tokens = np.random.default_rng(4).integers(0, model.vocab_size, model.max_length)
    exact_TV = full_logits(model, params, tokens)
    row, at = steps.empty_row(model, 96, None), 0
    for size in (16, 16, 8, 4, 4, *[1] * 47):
        read, targets = (tokens[None, at + shift : at + shift + size].astype(np.int32) for shift in (0, 1))
        row, scores = steps.prefill_scored(model, params, row, read, targets, np.int32(at))
        expected = jax.nn.log_softmax(exact_TV[at : at + size])[np.arange(size), targets[0]]
        np.testing.assert_allclose(scores.logprob_BT[0], expected, atol=2e-5)
        at += size
    assert at == 95


class Pieces:
    """A vocabulary of letters, Hangul, and Hangul in two halves."""

    pieces = (
        *(letter.encode() for letter in "abcdefghij \n가나다라마바사아자차카타파하서울의봄은온다"),
        *(part for syllable in "한글말" for part in (syllable.encode()[:2], syllable.encode()[2:])),
    )

    def token_bytes(self, token: int) -> bytes:
        return self.pieces[token] if token < len(self.pieces) else b""

    def encode(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:
            raise ValueError("lone surrogate") from None

    def decode(self, ids: bytes) -> str:
        return ids.decode()


def shown(tokens) -> str:
    data = b"".join(Pieces().token_bytes(token) for token in tokens)
    return codecs.getincrementaldecoder("utf-8")(errors="replace").decode(data)


def test_texts_end_before_the_first_stop_string_and_tokens_with_the_one_that_completes_it(model, params):
    engine = Engine(model, params, Pieces(), SETTINGS)
    draw, stopped = random.Random(0), 0
    for number in range(12):
        free = Request([number, 3], 40, Sampling(temperature=1.5, seed=number), samples=2)
        for sample in engine.complete([free])[0]:
            assert sample.text == shown(sample.tokens)
        whole = shown(sample.tokens)
        at = draw.randrange(len(whole) - 3)
        stop = (whole[at : at + draw.choice([1, 2, 3])], "가나다라마")
        cut = engine.complete([dataclasses.replace(free, stop=stop)])[0][1]
        stopped += cut.finish == "stop"
        assert cut.text == whole[: whole.index(stop[0])]
        assert cut.tokens == sample.tokens[: len(cut.tokens)]
        assert stop[0] in shown(cut.tokens) and stop[0] not in shown(cut.tokens[:-1])
        assert (engine.active_slots, engine.waiting) == (0, 0)
    assert stopped == 12


def test_a_slot_that_a_stop_string_ended_is_free_at_once(model, params):
    engine = Engine(model, params, Pieces(), dataclasses.replace(SETTINGS, slots=1))
    request = Request([5], 60, GREEDY)
    (whole,) = engine.complete([request])[0]
    first = whole.text[0]
    engine.submit(dataclasses.replace(request, stop=(first,)))
    second = engine.submit(request)
    after, rounds = Continuation(), 0
    while not engine.idle:
        for delta in engine.advance():
            if delta.request == second:
                after.add(delta)
        rounds += 1
    assert after == whole
    assert rounds == 1 + -(-60 // SETTINGS.steps), "one round for the first"
    engine.complete([dataclasses.replace(request, stop=(first,))])
    assert not np.any(engine._slots.left_B)


def test_a_stop_string_that_is_no_text_is_refused_before_it_waits(model, params):
    engine = Engine(model, params, Pieces(), SETTINGS)
    with pytest.raises(ValueError, match=r"stop has '\\udc80': lone surrogate"):
        engine.submit(Request([1], stop=("\udc80",)))
    assert engine.idle
