import collections
import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcxjax.data.mixing import Balance, deal, permuted, shares

NAMES = ("ko", "en", "code")


@pytest.mark.parametrize("rates", [None, {"ko": 5, "en": 3, "code": 2}, {"ko": 0.6, "en": 0.399, "code": 0.001}])
def test_every_window_holds_the_shares(rates):
    exact = list(shares(rates, NAMES).values())
    sources = [deal(row, exact)[0] for row in range(20_000)]
    for start in range(0, 19_000, 97):
        counts = collections.Counter(sources[start : start + 1000])
        for source, share in enumerate(exact):
            assert abs(counts[source] - 1000 * share) <= 3


@settings(deadline=None, max_examples=30)
@given(rates=st.lists(st.floats(0.01, 10), min_size=1, max_size=6))
def test_a_sources_rows_are_counted_without_gaps(rates):
    names = [str(number) for number in range(len(rates))]
    exact = list(shares(dict(zip(names, rates, strict=True)), names).values())
    assert sum(exact) == 1
    seen = collections.Counter()
    for row in range(500):
        source, number = deal(row, exact)
        assert number == seen[source]
        seen[source] += 1


@pytest.mark.parametrize("rate", [0, -0.5, math.nan, math.inf])
def test_impossible_rates_are_named(rate):
    with pytest.raises(ValueError, match=r"rate of 'en' is"):
        shares({"ko": 1, "en": rate, "code": 1}, NAMES)


def test_rates_must_name_the_sources():
    with pytest.raises(ValueError, match=r"no entry for 'en', 'code'"):
        shares({"ko": 1}, NAMES)
    with pytest.raises(ValueError, match=r"name 'jp'.*ko, en, code"):
        shares({"ko": 1, "en": 1, "code": 1, "jp": 1}, NAMES)


def test_tiny_rates_are_not_rounded_away():
    assert shares({"a": 1, "b": 1e-9}, ("a", "b"))["b"] > 0


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000, 4097])
def test_permutations_are_bijective_and_keyed(size):
    orders = [[permuted(position, size, key) for position in range(size)] for key in (1, 2)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    if size > 60:
        assert sum(a == b for a, b in zip(*orders, strict=True)) < 12
        assert sum(place == value for place, value in enumerate(orders[0])) < 12


def test_permutations_look_shuffled():
    order = [permuted(position, 1000, 3) for position in range(1000)]
    steps = [abs(b - a) for a, b in itertools.pairwise(order)]
    assert 280 < sum(steps) / len(steps) < 390  # a random order has 333


TOKENS = {"ko-law": 300, "ko-web": 100, "en": 7, "code-py": 50, "code-js": 150}


def test_groups_have_their_shares_and_sources_what_their_size_gives():
    rates = shares(Balance({"ko": 1, "en": 1, "code": 2}).rates(TOKENS), list(TOKENS))
    assert {name: float(rate) for name, rate in rates.items()} == pytest.approx(
        {"ko-law": 3 / 16, "ko-web": 1 / 16, "en": 1 / 4, "code-py": 1 / 8, "code-js": 3 / 8}, abs=1e-5
    )


def test_an_up_sampled_source_is_read_as_many_times_as_often_within_its_group():
    plain = Balance({"ko": 1, "en": 1, "code": 1}).rates(TOKENS)
    raised = Balance({"ko": 1, "en": 1, "code": 1}, {"ko-web": 3.0}).rates(TOKENS)
    epochs = {name: raised[name] / TOKENS[name] for name in TOKENS}
    assert epochs["ko-web"] == pytest.approx(3 * epochs["ko-law"])
    assert raised["ko-law"] + raised["ko-web"] == pytest.approx(plain["ko-law"] + plain["ko-web"])
    assert {name: raised[name] for name in ("en", "code-py")} == {name: plain[name] for name in ("en", "code-py")}


@pytest.mark.parametrize(
    ("balance", "message"),
    [
        (Balance({"ko": 1, "en": 1}), "Balance.groups has ko, en, but none that code-js, code-py begins with"),
        (Balance({"ko": 1, "en": 1, "code": 1, "ja": 1}), "Balance.groups names ja, but no source"),
        (
            Balance({"ko": 1, "en": 1, "code": 1}, {"wiki": 2}),
            "Balance.upsampling names wiki, but Corpus.sources has ko-law",
        ),
    ],
)
def test_a_balance_that_does_not_fit_is_named(balance, message):
    with pytest.raises(ValueError, match=message):
        balance.rates(TOKENS)
