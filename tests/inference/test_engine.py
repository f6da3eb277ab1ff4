import functools

import jax
import numpy as np
import pytest

from hcxjax.inference.decode import Limits, continuations, decode
from hcxjax.inference.sampling import Sampling
from hcxjax.models.decoder import Decoder

GREEDY = Sampling(temperature=0)
PROMPTS = [[5, 17, 33, 2, 9], [44], [7, 7, 8, 1, 60, 3, 12, 21, 30, 11]]


@functools.partial(jax.jit, static_argnums=0)
def forward(config, params, tokens_BT, segment_ids_BT):
    positions_BT = np.broadcast_to(np.arange(tokens_BT.shape[1], dtype=np.int32), tokens_BT.shape)
    return Decoder(config).apply({"params": params}, tokens_BT, segment_ids_BT, positions_BT)


@pytest.fixture(scope="module")
def params(tiny, random_params):
    return random_params(tiny, 2)


@pytest.fixture(scope="module")
def by_full_forwards(tiny, params):
    """The greedy continuation of every prompt to the end of the context, without a cache."""
    rows, length = len(PROMPTS), tiny.max_length
    tokens, sizes = np.zeros((rows, length), np.int32), np.array([len(prompt) for prompt in PROMPTS])
    for row, prompt in enumerate(PROMPTS):
        tokens[row, : len(prompt)] = prompt
    written = [[] for _ in PROMPTS]
    while np.any(sizes <= length):
        logits_BTV = forward(tiny, params, tokens, (np.arange(length) < sizes[:, None]).astype(np.int32))
        for row in np.flatnonzero(sizes <= length):
            written[row].append(int(np.argmax(logits_BTV[row, sizes[row] - 1])))
            if sizes[row] < length:
                tokens[row, sizes[row]] = written[row][-1]
            sizes[row] += 1
    return written


def test_greedy_equals_repeated_full_forwards_up_to_the_context(tiny, params, by_full_forwards):
    written = continuations(tiny, params, PROMPTS, Limits(new_tokens=100), GREEDY)
    assert [len(prompt) + len(new) for prompt, new in zip(PROMPTS, written, strict=True)] == [tiny.max_length] * 3
    # The forward of a whole context says one token more, which has no place left.
    assert written == [tokens[:-1] for tokens in by_full_forwards]


def test_ends_after_new_tokens(tiny, params, by_full_forwards):
    steps = list(decode(tiny, params, PROMPTS, Limits(new_tokens=4), GREEDY))
    assert steps == [[row[step] for row in by_full_forwards] for step in range(4)]
    assert list(decode(tiny, params, PROMPTS, Limits(new_tokens=1), GREEDY)) == steps[:1]


def test_a_stop_token_is_yielded_ends_its_row_and_is_left_out_of_the_text(tiny, params, by_full_forwards):
    stops = (by_full_forwards[0][2], by_full_forwards[1][5])
    ends = [next(step for step, token in enumerate(row) if token in stops or step == 11) for row in by_full_forwards]
    assert len(set(ends)) > 1
    limits = Limits(new_tokens=12, stop_ids=stops)
    steps = list(decode(tiny, params, PROMPTS, limits, GREEDY))
    assert len(steps) == max(ends) + 1
    for row, (tokens, end) in enumerate(zip(by_full_forwards, ends, strict=True)):
        assert [step[row] for step in steps] == [*tokens[: end + 1], *[None] * (len(steps) - end - 1)]
    written = [row[: end + 1] for row, end in zip(by_full_forwards, ends, strict=True)]
    texts = [[token for token in row if token not in stops] for row in written]
    assert continuations(tiny, params, PROMPTS, limits, GREEDY) == texts


def test_ragged_prompts_equal_each_alone(tiny, params, by_full_forwards):
    for prompt, tokens in zip(PROMPTS, by_full_forwards, strict=True):
        assert continuations(tiny, params, [prompt], Limits(new_tokens=100), GREEDY) == [tokens[:-1]]


def test_sampled_rows_do_not_depend_on_their_neighbours(tiny, params):
    sampling, limits = Sampling(temperature=1.3, seed=5), Limits(new_tokens=8)
    written = continuations(tiny, params, PROMPTS, limits, sampling)
    assert written == continuations(tiny, params, PROMPTS, limits, sampling)
    others = [PROMPTS[0], [1, 2, 3, 4], [50]]
    assert continuations(tiny, params, others, limits, sampling)[0] == written[0]
    twins = continuations(tiny, params, [PROMPTS[0]] * 3, limits, sampling)
    assert twins[0] == written[0] != twins[1]


@pytest.mark.parametrize(
    ("prompts", "limits", "message"),
    [
        ([], Limits(), "no prompt was given"),
        ([[1], []], Limits(), "prompt 1 has no token"),
        ([[1], [2, 61]], Limits(), r"prompt 1 has an id outside 0\.\.60"),
        ([[-1]], Limits(), r"prompt 0 has an id outside 0\.\.60"),
        ([[1] * 32], Limits(), r"prompt 0 has 32 tokens; the model's context is 32 \(DecoderConfig\.max_length\)"),
        ([[1]], Limits(new_tokens=0), "new_tokens is 0; it must be at least 1"),
    ],
)
def test_mistakes(tiny, params, prompts, limits, message):
    with pytest.raises(ValueError, match=message):
        next(decode(tiny, params, prompts, limits, GREEDY))
