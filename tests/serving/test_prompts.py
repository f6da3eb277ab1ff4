"""Calls as requests of the engine."""

import pytest

from hcxjax.serving.calls import CallLimits, completion
from hcxjax.serving.prompts import Served, completion_requests

LIMITS = CallLimits(50)


@pytest.mark.parametrize(("begin", "ends"), [((5, 6), (7, 8)), ((), ())])
def test_a_completion_begins_and_ends_as_its_model_says(vocabulary, begin, ends):
    served = Served("m", vocabulary, None, 100, vocabulary.size, LIMITS, begin, ends)
    call = {"model": "m", "prompt": "a", "stop_token_ids": [9]}
    (text,) = completion_requests(served, completion(call, LIMITS))
    assert (text.prompt, text.stop_ids) == ((*begin, *vocabulary.encode("a")), (*ends, 9))
    (filled,) = completion_requests(served, completion(call | {"suffix": "b"}, LIMITS))
    assert filled.prompt[: len(begin) + 1] == (*begin, vocabulary.fim_prefix)
    (ids,) = completion_requests(served, completion(call | {"prompt": [1, 2]}, LIMITS))
    assert ids.prompt == (1, 2)
