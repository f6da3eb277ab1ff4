"""Random choices that depend on a key alone: the same key gives the same choices on any machine, in any order."""

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A stream of choices named by a key.

    All is drawn from `Random.random`, the one method that Python promises to repeat across versions.
    """

    def __init__(self, *key: str | int) -> None:
        name = "/".join(map(str, key)).encode()
        digest = hashlib.blake2b(name, digest_size=8).digest()
        self._uniform = random.Random(int.from_bytes(digest, "little")).random

    def chance(self, probability: float) -> bool:
        """True with `probability`."""
        return self._uniform() < probability

    def number(self, low: int, high: int) -> int:
        """An integer from `low` to `high`, both included."""
        return low + int(self._uniform() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """One of `options`."""
        return options[int(self._uniform() * len(options))]

    def draw(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different elements of `options`, in random order. ValueError where there are fewer."""
        if count > len(options):
            raise ValueError(f"cannot draw {count} different elements from {len(options)}: lower count")
        chosen: list[int] = []
        while len(chosen) < count:
            place = int(self._uniform() * len(options))
            if place not in chosen:
                chosen.append(place)
        return [options[place] for place in chosen]
