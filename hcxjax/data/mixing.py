"""Which source a global row comes from, and which of its rows it is: pure functions of integers."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

from hcxjax.data.hashing import mixed

_ROUNDS = 6


def shares(rates: Mapping[str, float] | None, sources: Sequence[str]) -> dict[str, Fraction]:
    """Each source's share of the rows, in the order of `sources`; they add up to exactly 1.

    Rows are single-source and full, so these are shares of tokens (seqio's rates are shares of examples).

    Args:
      rates: name → any positive number; None gives equal shares.
    Raises:
      ValueError: names the source whose rate is missing, unknown, not positive or not finite.
    """
    if rates is None:
        rates = dict.fromkeys(sources, 1)
    if missing := [name for name in sources if name not in rates]:
        raise ValueError(f"rates have no entry for {', '.join(map(repr, missing))}; add it, or leave the source out")
    if unknown := [name for name in rates if name not in sources]:
        raise ValueError(f"rates name {', '.join(map(repr, unknown))}, but Corpus.sources has {', '.join(sources)}")
    for name, rate in rates.items():
        if not (math.isfinite(rate) and rate > 0):
            raise ValueError(f"the rate of {name!r} is {rate}; it must be positive (leave the source out to drop it)")
    exact = {name: Fraction(rates[name]).limit_denominator(10**6) or Fraction(rates[name]) for name in sources}
    total = sum(exact.values())
    return {name: rate / total for name, rate in exact.items()}


@dataclasses.dataclass(frozen=True)
class Balance:
    """Rates by size: groups of sources have fixed shares, and inside a group a source has what its size gives it.

    Source: HyperCLOVA X, arXiv:2404.01954, section 2: equal thirds of Korean, multilingual text and code; sources
    that bear knowledge are up-sampled, by factors that it does not disclose.

    Attributes:
      groups: name → share, up to a common factor. A source belongs to the group that its name begins with, up to the
        first hyphen: ko-law and ko-web to ko.
      upsampling: source → how many times as often as its size says it is read; 1 where it is not named.
    """

    groups: Mapping[str, float]
    upsampling: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def rates(self, tokens: Mapping[str, int]) -> dict[str, float]:
        """Rates of the sources that hold `tokens`.

        Raises:
          ValueError: a source has no group, a group no source, or `upsampling` names no source.
        """
        group_of = {name: name.partition("-")[0] for name in tokens}
        groups, names = ", ".join(self.groups), ", ".join(tokens)
        if unknown := sorted(name for name, group in group_of.items() if group not in self.groups):
            raise ValueError(f"Balance.groups has {groups}, but none that {', '.join(unknown)} begins with")
        if empty := sorted(set(self.groups) - set(group_of.values())):
            raise ValueError(f"Balance.groups names {', '.join(empty)}, but no source's name begins so")
        if unknown := sorted(set(self.upsampling) - set(tokens)):
            raise ValueError(f"Balance.upsampling names {', '.join(unknown)}, but Corpus.sources has {names}")
        sizes = {name: tokens[name] * self.upsampling.get(name, 1.0) for name in tokens}
        totals = {group: sum(size for name, size in sizes.items() if group_of[name] == group) for group in self.groups}
        return {name: self.groups[group_of[name]] * size / totals[group_of[name]] for name, size in sizes.items()}


def deal(row: int, ordered_shares: Sequence[Fraction]) -> tuple[int, int]:
    """(source, number of its rows before): the source of a global row, by nested Beatty sequences.

    The first source takes row g where floor((g + 1) p) > floor(g p), the others share what is left in the same way. In
    any window the count of source i is within i + 1 of its share; nothing but `row` is looked at.
    """
    rest = Fraction(1)
    for source, share in enumerate(ordered_shares[:-1]):
        part = share / rest
        before = row * part.numerator // part.denominator
        if (row + 1) * part.numerator // part.denominator > before:
            return source, before
        row -= before
        rest -= share
    return len(ordered_shares) - 1, row


def permuted(position: int, size: int, *key: int) -> int:
    """A keyed permutation of 0..size-1 at `position`, in constant memory.

    A balanced Feistel network over the next even power of two, walked until it falls inside (cycle walking).

    Source: Black and Rogaway 2002, "Ciphers with arbitrary finite domains".
    """
    assert 0 <= position < size, (position, size)
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = position >> half, position & mask
        for round_ in range(_ROUNDS):
            left, right = right, left ^ (mixed(*key, round_, right) & mask)
        position = left << half | right
        if position < size:
            return position
