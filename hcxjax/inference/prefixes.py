"""Keys and values of prompts' beginnings, kept so that a beginning that comes again is not read again."""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from hcxjax.models.attention import KVCache


class Prefixes:
    """Parts of `size` tokens, each known by all tokens up to its end; the one longest unused goes first.

    Parts lie on one grid from position 0, and each was computed from the same tokens by the same program as the reader
    would, so a prompt goes on from them with the same bits.

    Args:
      size: tokens a part.
      tokens: tokens kept in all; 0 keeps nothing.
    """

    def __init__(self, size: int, tokens: int):
        self._size = size
        self._most = tokens // size
        self._parts: OrderedDict[bytes, KVCache] = OrderedDict()

    def known(self, prompt: Sequence[int]) -> Iterator[KVCache]:
        """The parts that `prompt` begins with, from the first to the last that is kept without a gap."""
        for key in self._keys(prompt):
            part = self._parts.get(key)
            if part is None:
                return
            self._parts.move_to_end(key)
            yield part

    def wants(self, prompt: Sequence[int], end: int) -> bool:
        """Is the part that ends at `end`, a multiple of `size`, not kept yet?"""
        return self._most > 0 and self._key(prompt, end) not in self._parts

    def keep(self, prompt: Sequence[int], end: int, part: KVCache) -> None:
        """Keeps the part of `prompt` that ends at `end`."""
        self._parts[self._key(prompt, end)] = part
        while len(self._parts) > self._most:
            self._parts.popitem(last=False)

    def clear(self) -> None:
        """Forgets everything: the parameters have changed."""
        self._parts.clear()

    def _key(self, prompt: Sequence[int], end: int) -> bytes:
        return hashlib.sha256(np.asarray(prompt[:end], np.int32).tobytes()).digest()

    def _keys(self, prompt: Sequence[int]) -> Iterator[bytes]:
        summed, ids = hashlib.sha256(), np.asarray(prompt, np.int32)
        for start in range(0, len(prompt) - len(prompt) % self._size, self._size):
            summed.update(ids[start : start + self._size].tobytes())
            yield summed.digest()
