"""Integers from integers: every random choice of the data is one of these, so that nothing depends on history."""

import hashlib
import json
from typing import Any

import numpy as np

_MASK = (1 << 64) - 1


def mixed(*values: int) -> int:
    """A 64-bit hash of integers, the same on every machine. Source: SplitMix64, Steele et al. 2014, figure 10."""
    state = 0
    for value in values:
        state = ((state ^ (value & _MASK)) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state


def drawn(share: float, *values: int) -> bool:
    """A coin that falls True with probability `share`, decided by `values`."""
    return mixed(*values) < share * (_MASK + 1)


def shuffled(count: int, *values: int) -> np.ndarray:
    """A permutation of 0..count-1, decided by `values`; int64."""
    state = np.arange(count, dtype=np.uint64) + np.uint64(mixed(*values))
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.argsort(state ^ (state >> np.uint64(31)), kind="stable")


def fingerprint(*values: Any) -> int:
    """63 bits over anything that json can write; fits an int64 in a checkpoint."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=_plain)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _plain(value: Any) -> Any:
    if isinstance(value, np.integer):
        return int(value)
    raise TypeError(f"{type(value).__name__} has no fingerprint")
